"""Asks who calls before anything of a request is read, and answers those who may not."""

from __future__ import annotations

from functools import partial

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.buckets import Level
from app.auth.gate import Gate
from app.auth.origins import check_ambient
from app.errors import ApiError, answer_to
from app.settings import Settings

# All else needs a caller, what is added later included.
OPEN = frozenset({"/healthz/live", "/healthz/ready", "/v1/healthz/live", "/v1/healthz/ready", "/v1/openapi.json"})


class Authentication:
    """Puts the caller into ``request.state``, and whether they may still call into ``StillGood``."""

    def __init__(self, app: ASGIApp, gate: Gate, settings: Settings) -> None:
        self._app = app
        self._gate = gate
        self._allowed_hosts = settings.allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request through, or answers it."""
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        peer = scope.get("client") or ("", 0)
        try:
            if self._gate.is_open:
                check_ambient(scope, headers, self._allowed_hosts)
            authorization = headers.get("Authorization")
            caller = await self._gate.caller(authorization, peer[0])
            level = self._gate.spend(caller)
        except ApiError as error:
            await answer_to(error, scope["path"])(scope, receive, send)
            return
        still_good = partial(self._gate.is_still_good, authorization)
        scope.setdefault("state", {}).update(caller=caller, still_good=still_good)
        structlog.contextvars.bind_contextvars(account=caller.owner.account, tenant=caller.tenant)
        await self._app(scope, receive, send if level is None else _telling(level, send))


def _telling(level: Level, send: Send) -> Send:
    """Says how much is left."""

    async def told(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(level.headers)
        await send(message)

    return told
