"""Requests as bytes, for what no client library would send, and every answer that comes back on the connection."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from tests.app.factories import Service


@dataclass(frozen=True)
class Answer:
    """One answer on the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


def connect(service: Service, seconds: float = 30) -> socket.socket:
    """A plain connection."""
    url = service.http.base_url
    return socket.create_connection((url.host, url.port or 80), seconds)


def exchange(service: Service, request: bytes) -> list[Answer]:
    """All answers to these bytes; with the last of them the service closes the connection."""
    with connect(service) as connection:
        connection.sendall(request)
        received = b"".join(iter(lambda: _received(connection), b""))
    return answers(received)


def answers(received: bytes) -> list[Answer]:
    """The answers that these bytes are; those of this service say how long they are."""
    found = []
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1", first
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = int(headers.get("content-length", 0))
        found.append(Answer(int(status), headers, rest[:size]))
        received = rest[size:]
    return found


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except ConnectionResetError:  # it closed while bytes of ours were still on their way
        return b""
