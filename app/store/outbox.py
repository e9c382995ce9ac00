"""Job ids on their way to the queue. A fusion has a message here exactly as long as it is queued."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from app.store.clock import database_now
from app.store.ids import FusionId
from app.store.models import OutboxMessage


@dataclass(frozen=True)
class Message:
    """One job id to publish, and the queue it goes to."""

    id: int
    fusion_id: FusionId
    queue: str


def put(session: Session, fusion_id: str, queue: str) -> None:
    """The job has become claimable: its id is to be published."""
    session.add(OutboxMessage(fusion_id=fusion_id, queue=queue))
    session.flush()


def drop(session: Session, fusion_id: str) -> None:
    """The job is no longer queued: nothing to publish, nothing to repeat."""
    session.execute(delete(OutboxMessage).where(OutboxMessage.fusion_id == fusion_id))


def unpublished(session: Session, limit: int) -> list[Message]:
    """Messages never published, oldest first."""
    return _messages(session, _oldest(limit).where(OutboxMessage.published_at.is_(None)))


def published(session: Session, messages: Collection[Message]) -> None:
    """The messages are in the queue; a job claimed in between has no message any more, which is as good."""
    ids = [message.id for message in messages]
    now = database_now(session)
    session.execute(update(OutboxMessage).where(OutboxMessage.id.in_(ids)).values(published_at=now))


def waiting(session: Session) -> dict[str, int]:
    """For each queue, how many published jobs nobody has claimed yet."""
    counts = select(OutboxMessage.queue, func.count().label("waiting")).where(OutboxMessage.published_at.is_not(None))
    return {row.queue: row.waiting for row in session.execute(counts.group_by(OutboxMessage.queue))}


def unanswered(session: Session, queue: str, age: timedelta, limit: int) -> list[Message]:
    """Messages of ``queue`` published at least ``age`` ago whose job nobody has claimed, oldest first."""
    cutoff = database_now(session) - age
    return _messages(session, _oldest(limit).where(OutboxMessage.queue == queue, OutboxMessage.published_at <= cutoff))


def _oldest(limit: int) -> Select[OutboxMessage]:
    return select(OutboxMessage).order_by(OutboxMessage.id).limit(limit)


def _messages(session: Session, chosen: Select[OutboxMessage]) -> list[Message]:
    return [Message(row.id, FusionId(row.fusion_id), row.queue) for row in session.scalars(chosen)]
