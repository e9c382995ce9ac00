"""Answers only those who call the service by a name of this machine.

A page that a browser shows may point a name of its own at 127.0.0.1 (DNS rebinding), and could then read and change
everything here, as there are no keys. The name that the browser was given still stands in the Host header.
"""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import Misdirected, problem_response

_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)


class HostCheck:
    """Refuses every other name with 421."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Looks at the Host header."""
        if scope["type"] != "http" or _LOOPBACK.fullmatch(host := Headers(scope=scope).get("Host", "")):
            await self._app(scope, receive, send)
            return
        answer = problem_response(
            scope["path"],
            status=Misdirected.status,
            code=Misdirected.code,
            title=Misdirected.title,
            detail=f"The Host header says {host[:80]!r}, and this service answers to 127.0.0.1, localhost and [::1] only: "
            "call it by one of them; a reverse proxy in front has to set Host to 127.0.0.1.",
        )
        await answer(scope, receive, send)
