"""On which addresses the service may listen, and its listening socket."""

from __future__ import annotations

import socket

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class CannotServe(Exception):
    """The service can't be started; the message names the remedy."""


def check_host(host: str) -> None:
    """Refuses addresses that others could reach, as there are no keys yet."""
    if host not in _LOOPBACK:
        raise CannotServe(
            f"refusing to listen on {host}: there is no authentication, and others could reach it. Listen on 127.0.0.1 "
            "and put a reverse proxy that asks for credentials in front."
        )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        CannotServe: when the address is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotServe(f"can't listen on {host}:{port}: {error.strerror}. Choose another --port, or 0.") from error
    listener.listen(2048)
    return listener
