"""The event stream: server-sent events read from the event table, so that a reader may go on where it left off."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header
from pydantic import WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from app.auth import Reader, StillGood
from app.context import Context, Ctx
from app.errors import Unprocessable, declared
from app.fusions import service
from app.store.events import FINAL_EVENTS, events_after
from app.store.models import Event
from app.store.states import FINAL

router = APIRouter(prefix="/fusions", tags=["fusions"])
_AT_ONCE = 500
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Events until the final one", "content": {"text/event-stream": {}}},
    **declared(404),
}
# The contract only: what else stands there is refused by ``_position``, in better words.
_LastEventId = Annotated[
    str | None, Header(max_length=32), WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,18}$"})
]


class BadLastEventId(Unprocessable):
    """An event id that this service did not give."""

    code, title = "events.last_event_id", "Unusable Last-Event-ID"


@router.get("/{fusion_id}/events", response_class=StreamingResponse, responses=_ANSWERS)
async def follow_events(
    fusion_id: str, caller: Reader, still_good: StillGood, ctx: Ctx, last_event_id: _LastEventId = None
) -> StreamingResponse:
    """Follow a fusion: its events from the first, or from behind Last-Event-ID, until it has ended."""
    position = _position(last_event_id)
    await run_in_threadpool(_must_exist, ctx, caller.tenant, fusion_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(
        _stream(ctx, caller.tenant, fusion_id, position, still_good), headers=headers, media_type="text/event-stream"
    )


async def _stream(
    ctx: Context, tenant: str, fusion_id: str, position: int, still_good: StillGood
) -> AsyncIterator[str]:
    """Waits on the bell between looks: a follower without news holds no thread and no connection to the database."""
    spoken = time.monotonic()
    silence = ctx.settings.heartbeat_comment_seconds
    yield "retry: 1000\n\n"
    while not ctx.bell.closed and await still_good():
        heard = ctx.bell.rings
        events = await run_in_threadpool(_next_events, ctx, tenant, fusion_id, position)
        if events is None:
            return
        for event in events:
            yield _as_text(event)
            position = event.id
            if event.type in FINAL_EVENTS:
                return
        if events:
            spoken = time.monotonic()
        elif time.monotonic() - spoken >= silence:
            yield ": still here\n\n"
            spoken = time.monotonic()
        if len(events) < _AT_ONCE:
            await ctx.bell.wait(heard, max(spoken + silence - time.monotonic(), 0.01))


def _next_events(ctx: Context, tenant: str, fusion_id: str, position: int) -> list[Event] | None:
    """Events behind ``position``; None when there will be no more."""
    with ctx.database.reading() as session:
        fusion = service.find(session, tenant, fusion_id)
        # Looked at before the events: what has ended by now has written its last event.
        ended = fusion is None or fusion.state in FINAL
        events = list(events_after(session, fusion_id, position, _AT_ONCE))
        return None if ended and not events else events


def _must_exist(ctx: Context, tenant: str, fusion_id: str) -> None:
    with ctx.database.reading() as session:
        service.get(session, tenant, fusion_id)


def _as_text(event: Event) -> str:
    data = {"attempt": event.attempt, "time": event.created_at.isoformat(), **event.data}
    return f"id: {event.id}\nevent: {event.type}\ndata: {json.dumps(data)}\n\n"


def _position(header: str | None) -> int:
    if not header:
        return 0
    if not (header.isascii() and header.isdecimal()) or len(header) > 18:
        raise BadLastEventId.single("Last-Event-ID", "send the id of an event of this stream, unchanged")
    return int(header)
