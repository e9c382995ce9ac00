"""A line to a server whose answers come slowly, and never stand still."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_PIECE = 64 * 1024


@contextmanager
def slow_line(port: int, bytes_per_second: int) -> Iterator[int]:
    """The port of a proxy before the server on ``port`` of this machine; each connection is that slow."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, port, bytes_per_second), daemon=True).start()
        yield listener.getsockname()[1]
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, port: int, bytes_per_second: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port))
            for source, target, rate in ((client, server, None), (server, client, bytes_per_second)):
                threading.Thread(target=_pass, args=(source, target, rate), daemon=True).start()


def _pass(source: socket.socket, target: socket.socket, bytes_per_second: int | None) -> None:
    with contextlib.suppress(OSError), source:
        while piece := source.recv(_PIECE):
            target.sendall(piece)
            if bytes_per_second is not None:
                time.sleep(len(piece) / bytes_per_second)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
