"""What an endpoint writes to say which scope it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from app.auth.callers import LOCAL_CALLER, Caller, Scope
from app.auth.errors import ScopeMissing


def _having(scope: Scope) -> Callable[[Request], Caller]:
    async def caller(request: Request) -> Caller:  # async: a thread would cost more than the look
        found = getattr(request.state, "caller", LOCAL_CALLER)
        assert isinstance(found, Caller)
        if scope not in found.scopes:
            raise ScopeMissing.of(scope)
        return found

    return caller  # type: ignore[return-value]


Reader = Annotated[Caller, Depends(_having(Scope.READ))]
Uploader = Annotated[Caller, Depends(_having(Scope.UPLOAD))]
Fuser = Annotated[Caller, Depends(_having(Scope.FUSE))]
Subscriber = Annotated[Caller, Depends(_having(Scope.WEBHOOKS))]
