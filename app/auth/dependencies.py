"""What an endpoint writes to say which scope it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from app.auth.callers import Caller, Scope
from app.auth.errors import ScopeMissing


def _having(scope: Scope) -> Callable[[Request], Awaitable[Caller]]:
    async def caller(request: Request) -> Caller:  # async: a thread would cost more than the look
        found = request.state.caller
        assert isinstance(found, Caller)
        if scope not in found.scopes:
            raise ScopeMissing.of(scope)
        return found

    return caller


async def _still_good(request: Request) -> Callable[[], Awaitable[bool]]:
    found: Callable[[], Awaitable[bool]] = request.state.still_good
    return found


# For what goes on after its answer has begun: a revoked key ends that, too.
StillGood = Annotated[Callable[[], Awaitable[bool]], Depends(_still_good)]
Reader = Annotated[Caller, Depends(_having(Scope.READ))]
Uploader = Annotated[Caller, Depends(_having(Scope.UPLOAD))]
Fuser = Annotated[Caller, Depends(_having(Scope.FUSE))]
Subscriber = Annotated[Caller, Depends(_having(Scope.WEBHOOKS))]
