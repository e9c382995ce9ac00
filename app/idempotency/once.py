"""What an endpoint uses to do its work once for each Idempotency-Key."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.auth import Caller
from app.context import Context, Ctx
from app.errors import ApiError
from app.idempotency import repository
from app.idempotency.errors import KeyReused
from app.store.models import IdempotentCall
from cogram_core.errors import InvalidInput

HEADER = "Idempotency-Key"
_MOST_OF_A_CALL = 255
Key = Annotated[
    str | None,
    Header(
        alias=HEADER,
        max_length=255,
        pattern=r"^[!-~]([ -~]*[!-~])?$",
        description="1 to 255 printable ASCII characters; the same call under the same key is done once, and answered again",
    ),
]


class AnsweredBefore(Exception):
    """The call was done before; carries its answer."""

    def __init__(self, answer: Response) -> None:
        super().__init__("answered before")
        self.answer = answer


@dataclass(frozen=True)
class CallOnce:
    """One call; without a key it is done however often it comes."""

    owner: str
    key: str | None
    call: str
    fingerprint: str

    def look(self, session: Session) -> None:
        """Spares the work of a call that was done before.

        Raises:
            AnsweredBefore: with the answer.
            KeyReused: when the key stands for another call.
        """
        found = repository.get(session, self.owner, self.key) if self.key is not None else None
        if found is not None:
            self._repeat(found)

    def begin(self, session: Session) -> None:
        """Called first in the transaction that does the work. Of two calls at once the second waits for the first.

        Raises:
            AnsweredBefore, KeyReused: as ``look``.
        """
        if self.key is not None and not repository.claim(session, self.owner, self.key, self.call, self.fingerprint):
            self.look(session)

    def answer(self, session: Session, status: int, document: BaseModel, headers: Mapping[str, str]) -> Response:
        """The answer, written down in the transaction that did the work."""
        body = document.model_dump_json()
        if self.key is not None:
            repository.answer(session, self.owner, self.key, status, headers, body)
        return Response(body, status, headers, "application/json")

    def _repeat(self, found: IdempotentCall) -> None:
        if (found.call, found.body_sha256) != (self.call, self.fingerprint):
            raise KeyReused.single(
                HEADER,
                f"it was sent with another call or body before ({found.call}); send a new key with each new call",
            )
        headers = {**found.headers, "Idempotency-Replayed": "true"}
        raise AnsweredBefore(Response(found.body, found.status, headers, "application/json"))


async def _once(request: Request, ctx: Ctx, key: Key = None) -> AsyncIterator[CallOnce]:
    caller = request.state.caller
    assert isinstance(caller, Caller)
    call = f"{request.method} {request.url.path}"[:_MOST_OF_A_CALL]
    # The tenant is in it, as a token may name another one tomorrow.
    fingerprint = hashlib.sha256(f"{caller.tenant}\n{request.url.path}?{request.url.query}\n".encode())
    fingerprint.update(await request.body())
    once = CallOnce(caller.owner.account, key, call, fingerprint.hexdigest())
    if key is None:
        yield once
        return
    await run_in_threadpool(_look, ctx, once)
    try:
        yield once
    except (ApiError, InvalidInput):
        # Perhaps only because the same call, sent at the same time, has done the work meanwhile and used its inputs up.
        await run_in_threadpool(_look, ctx, once)
        raise


def _look(ctx: Context, once: CallOnce) -> None:
    with ctx.database.reading() as session:
        once.look(session)


# After the caller's alias in an endpoint's parameters: who may not call gets no answer of before either.
Once = Annotated[CallOnce, Depends(_once)]
