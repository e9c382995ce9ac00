"""On which addresses the service may listen, and its listening socket."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from app.settings import Settings


class CannotServe(Exception):
    """The service can't be started; the message names the remedy."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_access(settings: Settings) -> None:
    """Refuses to listen where others could reach a service that asks nobody for credentials.

    Raises:
        CannotServe: for that, and for an identity provider that is only half described.
    """
    if not is_loopback(settings.host) and not settings.credentials_required:
        raise CannotServe(
            f"refusing to listen on {settings.host}: others could reach it, and nobody is asked for credentials. Set "
            "COGRAM_REQUIRE_KEYS=true and make a key with cogram keys create, or set COGRAM_OIDC_ISSUER, or listen on "
            "127.0.0.1."
        )
    if settings.oidc_issuer is None:
        return
    if not settings.oidc_audience:
        raise CannotServe("COGRAM_OIDC_ISSUER is set without COGRAM_OIDC_AUDIENCE: tokens for others would be taken.")
    for name, url in (("ISSUER", settings.oidc_issuer), ("JWKS_URL", settings.oidc_jwks_url)):
        if url is not None and not _is_safe(url):
            raise CannotServe(f"COGRAM_OIDC_{name} is {url}: it must be an https address, as keys come from there.")


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        CannotServe: when the address is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small answers at once only where a socket says that it is TCP; else a caller who keeps the connection
    # waits 40 ms for every one of them.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotServe(
            f"can't listen on {host}:{port}: {error.strerror}. Choose another --host or --port; port 0 is any free one."
        ) from error
    listener.listen(2048)
    return listener
