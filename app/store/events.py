"""What happened to a fusion, in order; what the event stream reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.models import Event


class EventType(StrEnum):
    """Every kind of event there is."""

    QUEUED = "queued"
    STARTED = "started"
    STAGE_STARTED = "stage_started"
    PROGRESS = "progress"
    DECISIONS = "decisions"
    RESUMED = "resumed"
    STAGE_FINISHED = "stage_finished"
    REQUEUED = "requeued"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_EVENTS = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELLED})


def append(session: Session, fusion_id: str, attempt: int, kind: EventType, data: Mapping[str, Any]) -> None:
    """Adds an event. The caller has inserted or updated the fusion's row in this transaction before.

    That lock makes ids of one fusion commit in order: a reader that has seen id n never misses a smaller one.
    """
    session.add(Event(fusion_id=fusion_id, attempt=attempt, type=kind.value, data=dict(data)))
    session.flush()


def events_after(session: Session, fusion_id: str, last_id: int, limit: int) -> Sequence[Event]:
    """The fusion's events with an id above ``last_id``, oldest first, at most ``limit``."""
    chosen = select(Event).where(Event.fusion_id == fusion_id, Event.id > last_id).order_by(Event.id).limit(limit)
    return session.scalars(chosen).all()
