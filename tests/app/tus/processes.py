"""The API as a process of its own, to be killed; its socket stays, so that callers find the next one there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from app.listening import listen
from app.settings import Settings


class ApiProcess:
    """One API process at a time on one address."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._listener = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._log = folder / "api.log"
        self._environment = os.environ | {
            "COGRAM_DATA_DIR": str(settings.data_dir),
            "COGRAM_MIN_FREE_BYTES": "0",
            "DATABASE_URL": settings.resolved_database_url,
            "BROKER_URL": settings.resolved_broker_url,
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """One more process that serves on the address, once it answers."""
        descriptor = self._listener.fileno()
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "app.api", "--fd", str(descriptor)],
                env=self._environment,
                pass_fds=[descriptor],
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        deadline = time.monotonic() + 60
        while True:
            assert process.poll() is None, self._log.read_text()
            try:
                httpx.get(self.url + "/healthz/live", timeout=5)
            except httpx.TransportError:
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.05)
            else:
                return

    @property
    def pid(self) -> int:
        """The number of the process that was started last."""
        return self._processes[-1].pid

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        process = self._processes.pop()
        process.send_signal(signal.SIGKILL)
        process.wait(20)

    def close(self) -> None:
        """All of them."""
        while self._processes:
            self.kill()
        self._listener.close()


@contextmanager
def api_process(settings: Settings, folder: Path) -> Iterator[ApiProcess]:
    """A running one."""
    made = ApiProcess(settings, folder)
    try:
        made.start()
        yield made
    finally:
        made.close()
