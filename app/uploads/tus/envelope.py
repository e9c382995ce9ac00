"""What tus asks of every request and answer below its address, whoever answers."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.uploads.tus.protocol import VERSION

PREFIX = "/v1/uploads"
ALWAYS = {"Tus-Resumable": VERSION}


def is_below(path: str) -> bool:
    """Whether tus is spoken there."""
    return path == PREFIX or path.startswith(PREFIX + "/")


class TusEnvelope:
    """The outermost middleware: another method where a proxy lets only POST pass, and the version on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leaves everything else as it is."""
        if scope["type"] != "http" or not is_below(scope["path"]):
            await self._app(scope, receive, send)
            return

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["method"] != "OPTIONS":
                MutableHeaders(scope=message).update(ALWAYS)
            await send(message)

        override = Headers(scope=scope).get("X-HTTP-Method-Override")
        if override:
            # tus 1.0: the request's own method must be ignored. What is no method here is a 405, as ever.
            scope = {**scope, "method": override.upper()}
        await self._app(scope, receive, labelled)
