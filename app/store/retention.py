"""Rows that have had their time: a few at once, so that nobody waits long for them; several at it do no harm."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVarTuple

from sqlalchemy import Select, delete, exists, select
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from app.store.clock import database_now
from app.store.models import (
    Artifact,
    Checkpoint,
    CheckpointFile,
    Dataset,
    Event,
    Fusion,
    FusionInput,
    IdempotentCall,
    OutboxMessage,
    UploadedFile,
)
from app.store.states import FINAL

Row = TypeVarTuple("Row")


def remove_fusion(session: Session, fusion_id: str) -> None:
    """Removes the fusion and every row that belongs to it."""
    for table in (Artifact, FusionInput, Event, OutboxMessage):
        session.execute(delete(table).where(table.fusion_id == fusion_id))
    session.execute(delete(Fusion).where(Fusion.id == fusion_id))


def expire_fusions(session: Session, age: timedelta, limit: int) -> int:
    """Removes fusions that ended that long ago, with their artifacts and events; how many."""
    ended = select(Fusion.id).where(Fusion.state.in_(FINAL), Fusion.finished_at < database_now(session) - age)
    chosen = session.scalars(_held(ended.order_by(Fusion.finished_at), limit)).all()
    for fusion_id in chosen:
        remove_fusion(session, fusion_id)
    return len(chosen)


def expire_loose_files(session: Session, age: timedelta, limit: int) -> int:
    """Removes uploaded files that nobody made a checkpoint or dataset of for that long; how many."""
    old = select(UploadedFile).where(UploadedFile.created_at < database_now(session) - age)
    chosen = session.scalars(_held(old.order_by(UploadedFile.created_at), limit)).all()
    for file in chosen:
        session.delete(file)
    return len(chosen)


def expire_checkpoints(session: Session, age: timedelta, limit: int) -> int:
    """Removes checkpoints made that long ago that no fusion uses; how many."""
    cutoff = database_now(session) - age
    unused = ~exists().where(FusionInput.reference == Checkpoint.id)
    old = select(Checkpoint.id).where(Checkpoint.created_at < cutoff, unused).order_by(Checkpoint.created_at)
    # Held first and asked again then: a fusion that begins to use one holds it, too, until its row is there.
    held = session.scalars(_held(old, limit)).all()
    chosen = session.scalars(select(Checkpoint.id).where(Checkpoint.id.in_(held), unused)).all()
    session.execute(delete(CheckpointFile).where(CheckpointFile.checkpoint_id.in_(chosen)))
    session.execute(delete(Checkpoint).where(Checkpoint.id.in_(chosen)))
    return len(chosen)


def expire_datasets(session: Session, age: timedelta, limit: int) -> int:
    """Removes datasets made that long ago that no fusion uses; how many."""
    unused = ~exists().where(FusionInput.reference == Dataset.id)
    old = select(Dataset.id).where(Dataset.created_at < database_now(session) - age, unused)
    held = session.scalars(_held(old.order_by(Dataset.created_at), limit)).all()
    chosen = session.scalars(select(Dataset.id).where(Dataset.id.in_(held), unused)).all()
    session.execute(delete(Dataset).where(Dataset.id.in_(chosen)))
    return len(chosen)


def expire_idempotent_calls(session: Session, age: timedelta, limit: int) -> int:
    """Forgets answers that are no longer repeated; how many."""
    old = select(IdempotentCall.owner, IdempotentCall.key).where(
        IdempotentCall.created_at < database_now(session) - age
    )
    forgotten = 0
    for owner, key in session.execute(_held(old.order_by(IdempotentCall.created_at), limit)).all():
        gone = session.execute(delete(IdempotentCall).where(IdempotentCall.owner == owner, IdempotentCall.key == key))
        assert isinstance(gone, CursorResult)
        forgotten += gone.rowcount
    return forgotten


def _held(chosen: Select[*Row], limit: int) -> Select[*Row]:
    """Some of them, held until the transaction ends; those that another holds are left to it."""
    return chosen.limit(limit).with_for_update(skip_locked=True)
