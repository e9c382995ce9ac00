"""Bad lines: a proxy that cuts connections, and connections that a test sends half a request over."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import httpx

from tests.app.tus.speaking import CHUNK_TYPE

_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: a reset instead of an end


class Line:
    """A proxy before the service; each connection breaks once so many bytes of its client have passed."""

    def __init__(self, service: httpx.URL, budgets: Sequence[int]) -> None:
        self._service = (service.host, service.port or 80)
        self._budgets = list(budgets)
        self._connections: list[socket.socket] = []
        self._guard = threading.Lock()
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """No more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(10)
        for connection in self._connections:
            _cut(connection)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                service = socket.create_connection(self._service, 10)
            except OSError:  # the service is away just now
                _cut(client)
                continue
            self._connections += [client, service]
            budget = self._budgets.pop(0) if self._budgets else None
            for source, target, left in ((client, service, budget), (service, client, None)):
                thread = threading.Thread(target=self._pump, args=(source, target, left), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, left: int | None) -> None:
        with contextlib.suppress(OSError):
            source.settimeout(30)
            while piece := source.recv(65536 if left is None else min(65536, left)):
                target.sendall(piece)
                if left is not None:
                    left -= len(piece)
                    if left == 0:
                        with self._guard:
                            self.cuts += 1
                        break
        _cut(source)
        _cut(target)


@contextmanager
def line(service: httpx.URL, *budgets: int) -> Iterator[Line]:
    """A bad line for the length of the block."""
    made = Line(service, budgets)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def half_sent(
    service: httpx.URL, url: str, offset: int, announced: int, content: bytes, more: str = ""
) -> Iterator[socket.socket]:
    """A PATCH of which only ``content`` has come so far."""
    with socket.create_connection((service.host, service.port or 80), 25) as connection:
        head = (
            f"PATCH {url} HTTP/1.1\r\nHost: localhost\r\nTus-Resumable: 1.0.0\r\nUpload-Offset: {offset}\r\n"
            f"Content-Type: {CHUNK_TYPE}\r\nContent-Length: {announced}\r\n{more}\r\n"
        )
        connection.sendall(head.encode() + content)
        yield connection


def soon(condition: Callable[[], object], seconds: float = 20) -> bool:
    """Whether it becomes true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
