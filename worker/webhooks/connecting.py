"""Connections to addresses that callers choose: looked up once, judged before and after connecting, cut off in time.

Names are resolved here and only what may be called is connected to, so nothing is learnt of a private network, not even
whether a port is open there. What counts, though, is the peer of the connection that came about: it is judged before
a byte is sent, and so is whether it is this very machine.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpcore

from app.peers import Peers

Resolve = Callable[[str, int], Sequence[str]]
_MOST_ADDRESSES = 8


class NoPeer(Exception):
    """The host has no address that may be called, or the connection led somewhere else. Holds what was found, to log."""


class OutOfTime(httpcore.TimeoutException):
    """The whole time for one message is over."""


class Deadline:
    """When a message must have its answer."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left.

        Raises:
            OutOfTime: when there are none.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise OutOfTime
        return left


class Connector(httpcore.SyncBackend):
    """Makes the connection of one message."""

    def __init__(self, peers: Peers, deadline: Deadline, connect_seconds: float, resolve: Resolve) -> None:
        self._peers = peers
        self._deadline = deadline
        self._connect_seconds = connect_seconds
        self._resolve = resolve

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # the deadline's time counts, and no other
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """The first of the host's addresses that may be called and answers.

        Raises:
            NoPeer: when none may be.
        """
        found = self._resolve(host, port)
        addresses = [address for address in found if self._peers.allow(address)]
        if not addresses:
            raise NoPeer(*found)
        in_time = Deadline(min(self._connect_seconds, self._deadline.left()))
        failure: Exception = NoPeer()
        for address in addresses[:_MOST_ADDRESSES]:
            try:
                stream = super().connect_tcp(address, port, in_time.left(), local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            if not self._may_talk_to(stream):
                stream.close()
                raise NoPeer(address)
            return _Hurried(stream, self._deadline)
        raise failure

    def _may_talk_to(self, stream: httpcore.NetworkStream) -> bool:
        connection: socket.socket = stream.get_extra_info("socket")
        try:
            peer, own = connection.getpeername()[0], connection.getsockname()[0]
        except OSError as error:  # the peer has hung up already
            stream.close()
            raise httpcore.ConnectError(str(error)) from error
        return self._peers.allow(peer) and (self._peers.allow_private or peer != own)


class _Hurried(httpcore.NetworkStream):
    """A stream whose every step may take what is left of the whole time; a receiver that dribbles gains nothing."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        return _Hurried(self._stream.start_tls(ssl_context, server_hostname, self._deadline.left()), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def resolve(host: str, port: int) -> list[str]:
    """The host's addresses in numbers; none if there is no such name."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]
