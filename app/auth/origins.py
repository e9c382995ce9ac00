"""While nobody needs credentials, whatever a browser on this machine is made to send would be obeyed: so it is looked at.

A page of another origin may send a POST without asking first (cross-site request forgery). The browser says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.types import Scope

from app.auth.errors import ForeignOrigin, NotFromOutside
from app.listening import is_loopback

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FOREIGN_SITES = frozenset({"cross-site", "same-site"})  # another port of this machine is the same site


def check_ambient(scope: Scope, headers: Mapping[str, str], allowed_hosts: Collection[str]) -> None:
    """Refuses what could act in the name of the local caller, and isn't theirs.

    Raises:
        NotFromOutside: for a connection that came in from another machine.
        ForeignOrigin: for a change that the page of another origin asks for.
    """
    server = scope.get("server")
    if server is not None and server[1] is not None and not is_loopback(server[0]):
        raise NotFromOutside(
            f"The service was reached at {server[0]}, where others could reach it, and asks nobody for credentials. Set "
            "COGRAM_REQUIRE_KEYS=true, and make keys with cogram keys create."
        )
    if scope["method"] not in _SAFE and _is_foreign(headers, allowed_hosts):
        raise ForeignOrigin(
            f"A web page of another origin ({headers.get('Origin', 'not named')[:200]}) sent this; it was not obeyed. "
            "If the page is yours, serve it from this address, or name its host in COGRAM_ALLOWED_HOSTS."
        )


def _is_foreign(headers: Mapping[str, str], allowed_hosts: Collection[str]) -> bool:
    origin = headers.get("Origin")
    if origin is None:
        return headers.get("Sec-Fetch-Site", "") in _FOREIGN_SITES
    try:
        parts = urlsplit(origin)
        host = parts.hostname
    except ValueError:
        return True
    return not (
        host in allowed_hosts or (parts.netloc != "" and parts.netloc.lower() == headers.get("Host", "").lower())
    )
