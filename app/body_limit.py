"""Keeps documents small and prompt: every body but an upload's is held in memory, so it has a limit, and a time."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.uploads.tus.envelope import is_below


class BodyLimit:
    """Ends a request with 413 as soon as its body is known to be too long, and with 408 when it doesn't come.

    Uploads have limits of their own.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts what the application receives."""
        if scope["type"] != "http" or scope["method"] == "PUT" or is_below(scope["path"]):
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("Content-Length", "")
        received = 0
        deadline: float | None = None  # from when the body is asked for
        complete = False

        async def counted() -> Message:
            nonlocal received, deadline, complete
            # Raised here, where the body is asked for, and not above: so it passes the handlers that tell errors.
            if announced.isdecimal() and int(announced) > self._limit:
                raise self._too_large()
            if complete:  # what is waited for now is the caller's hanging up
                return await receive()
            deadline = deadline or asyncio.get_running_loop().time() + self._seconds
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._limit:
                raise self._too_large()
            return message

        await self._app(scope, counted, send)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"A document has at most {self._limit} bytes here (COGRAM_MAX_JSON_BYTES).")

    def _too_slow(self) -> HTTPException:
        detail = f"The body did not come within {self._seconds:g} seconds (COGRAM_BODY_IDLE_SECONDS)."
        return HTTPException(408, detail, {"Connection": "close"})  # the rest, if it comes at all, would come as slowly
