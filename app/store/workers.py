"""Which queues are served, as far as workers tell: each signs now and then, and one that is silent for long is gone.

Nothing depends on it but what people are told: who may run a job is a matter of leases alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from app.store.clock import database_now
from app.store.models import WorkerSign
from app.store.upserts import insert


def sign(session: Session, name: str, queues: Collection[str]) -> None:
    """The worker lives, and serves these queues."""
    present = {"queues": sorted(queues), "seen_at": database_now(session)}
    signed = insert(session, WorkerSign).values(name=name, **present)
    session.execute(signed.on_conflict_do_update(index_elements=[WorkerSign.name], set_=present))


def leave(session: Session, name: str) -> None:
    """The worker takes no more jobs."""
    session.execute(delete(WorkerSign).where(WorkerSign.name == name))


def serving(session: Session, silence: timedelta) -> Counter[str]:
    """For each queue, how many workers serve it; those that were silent for longer are gone."""
    signed = select(WorkerSign.queues).where(WorkerSign.seen_at >= database_now(session) - silence)
    return Counter(queue for queues in session.scalars(signed) for queue in queues)


def forget(session: Session, silence: timedelta) -> int:
    """Removes workers that are gone, and how many they were; one that was only cut off signs again."""
    gone = session.execute(delete(WorkerSign).where(WorkerSign.seen_at < database_now(session) - silence))
    assert isinstance(gone, CursorResult)
    return gone.rowcount
