"""What surrounds every request: its id, in and out; one log line; and an answer even when something breaks."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-ID"
CUT = "cogram.cut"  # what a scope's state has from our own protocol: a call that ends the connection
_ACCEPTABLE = re.compile(r"[A-Za-z0-9._-]{1,128}")  # what a caller may choose; anything else could forge log lines
_MOST_AGENT = 120  # characters
_request_id: ContextVar[str] = ContextVar("request_id", default="-")
_log = structlog.get_logger("app.request")


def current_request_id() -> str:
    """The id of the request that is being answered."""
    return _request_id.get()


class RequestScope:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, last_resort: Callable[[str, Exception], Response]) -> None:
        self._app = app
        self._last_resort = last_resort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers within the id that the caller gave, or a new one."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _ACCEPTABLE.fullmatch(given) else "req_" + secrets.token_hex(12)
        token = _request_id.set(request_id)
        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                await self._answer(scope, receive, send, request_id)
        finally:
            _request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        began = time.monotonic()
        status, sent = 0, 0

        async def labelled(message: Message) -> None:
            nonlocal status, sent
            sent += len(message.get("body", b""))
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, labelled)
        except Exception as error:
            cut_off = isinstance(error, ClientDisconnect)
            if cut_off:
                _log.info("request.cut_off", method=scope["method"], path=scope["path"])
            else:
                _log.exception("request.broke", method=scope["method"], path=scope["path"])
            if not status:
                await self._last_resort(scope["path"], error)(scope, receive, labelled)
            elif cut_off and CUT in scope.get("state", {}):
                scope["state"][CUT]()  # what is raised, uvicorn logs as an error of ours
            else:
                raise  # half an answer is out: only closing the connection tells the caller
        finally:
            _log.info(
                "request",
                method=scope["method"],
                path=scope["path"],  # without the query: what stands there is nobody's business
                status=status,
                elapsed_ms=round((time.monotonic() - began) * 1000, 1),
                sent_bytes=sent,
                peer=(scope.get("client") or (None,))[0],
                agent=Headers(scope=scope).get("User-Agent", "")[:_MOST_AGENT],
            )
