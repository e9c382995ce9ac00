"""Answers only those who call the service by one of its names.

A page that a browser shows may point a name of its own at 127.0.0.1 (DNS rebinding), and could then read and change
everything here while no keys are needed. The name that the browser was given still stands in the Host header. Where
keys are needed such a page has none, so any name is good unless some are set.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Misdirected, answer_to
from app.settings import Settings

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class HostCheck:
    """Refuses every other name with 421."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._any = settings.credentials_required and not settings.allowed_hosts
        self._names = (*_LOOPBACK, *settings.allowed_hosts)
        self._good = re.compile(rf"({'|'.join(map(re.escape, self._names))})(:[0-9]{{1,5}})?", re.IGNORECASE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Looks at the Host header."""
        host = Headers(scope=scope).get("Host", "") if scope["type"] == "http" else ""
        if scope["type"] != "http" or self._any or self._good.fullmatch(host):
            await self._app(scope, receive, send)
            return
        error = Misdirected(
            f"The Host header says {host[:80]!r}, and this service answers to {', '.join(self._names)} only: call it by one "
            "of them; a reverse proxy in front has to set Host to 127.0.0.1, or its name has to be in COGRAM_ALLOWED_HOSTS."
        )
        await answer_to(error, scope["path"])(scope, receive, send)
