"""Asks a Redis or Valkey whether it is there, in the four lines of protocol that this takes."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import unquote, urlsplit

_TIMEOUT = 2.0
_DEFAULT_PORT = 6379


class BrokerAnswer(OSError):
    """Something answers at the broker's address, but not as a broker does."""


def ping(url: str) -> None:
    """Raises OSError unless the broker at ``url`` answers."""
    parts = urlsplit(url)
    with _connected(url) as connection:
        connection.settimeout(_TIMEOUT)
        if parts.password:
            words = ["AUTH", *([unquote(parts.username)] if parts.username else []), unquote(parts.password)]
            _ask(connection, words, "+OK")
        _ask(connection, ["PING"], "+PONG")


def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.scheme in {"redis+socket", "unix", "valkey+socket"}:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT)
        try:
            connection.connect(unquote(parts.path))
        except OSError:
            connection.close()
            raise
        return connection
    host = parts.hostname or "127.0.0.1"
    plain = socket.create_connection((host, parts.port or _DEFAULT_PORT), _TIMEOUT)
    if parts.scheme == "rediss":
        return ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    return plain


def _ask(connection: socket.socket, words: list[str], wanted: str) -> None:
    encoded = [word.encode() for word in words]
    request = b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
    connection.sendall(request)
    answer = connection.recv(512).decode("utf-8", "replace")
    if not answer.startswith(wanted):
        raise BrokerAnswer(f"the broker answered {answer.strip()!r}")
