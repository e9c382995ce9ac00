"""Keeps documents small: every body but an upload's is held in memory, so it has a limit."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.uploads.tus.envelope import is_below


class BodyLimit:
    """Ends a request with 413 as soon as its body is known to be too long; uploads have limits of their own."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts what the application receives."""
        if scope["type"] != "http" or scope["method"] == "PUT" or is_below(scope["path"]):
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("Content-Length", "")
        received = 0

        async def counted() -> Message:
            nonlocal received
            # Raised here, where the body is asked for, and not above: so it passes the handlers that tell errors.
            if announced.isdecimal() and int(announced) > self._limit:
                raise self._too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"A document has at most {self._limit} bytes here (COGRAM_MAX_JSON_BYTES).")
