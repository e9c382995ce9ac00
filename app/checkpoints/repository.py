"""Every select on checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete as sql_delete
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.ids import is_id
from app.store.models import Checkpoint, CheckpointFile, FusionInput


def get(session: Session, tenant: str, checkpoint_id: str) -> Checkpoint | None:
    """By id; None if it is another tenant's."""
    return _own(session.get(Checkpoint, checkpoint_id) if is_id(checkpoint_id) else None, tenant)


def get_locked(session: Session, tenant: str, checkpoint_id: str) -> Checkpoint | None:
    """By id; nobody else may begin to use or remove it until the transaction ends."""
    return _own(session.get(Checkpoint, checkpoint_id, with_for_update=True) if is_id(checkpoint_id) else None, tenant)


def newest_named(session: Session, tenant: str, name: str) -> Checkpoint | None:
    """The latest checkpoint of a name."""
    chosen = (
        select(Checkpoint)
        .where(Checkpoint.tenant == tenant, Checkpoint.name == name)
        .order_by(Checkpoint.id.desc())
        .limit(1)
    )
    return session.scalars(chosen).one_or_none()


def page(session: Session, tenant: str, name: str | None, before: str | None, limit: int) -> Sequence[Checkpoint]:
    """Newest first, from below the id ``before``."""
    chosen = select(Checkpoint).where(Checkpoint.tenant == tenant).order_by(Checkpoint.id.desc()).limit(limit)
    if name is not None:
        chosen = chosen.where(Checkpoint.name == name)
    if before is not None:
        chosen = chosen.where(Checkpoint.id < before)
    return session.scalars(chosen).all()


def delete(session: Session, checkpoint: Checkpoint) -> None:
    """Removes the checkpoint and the list of its files."""
    session.execute(sql_delete(CheckpointFile).where(CheckpointFile.checkpoint_id == checkpoint.id))
    session.execute(sql_delete(Checkpoint).where(Checkpoint.id == checkpoint.id))


def users(session: Session, checkpoint_id: str) -> Sequence[str]:
    """Ids of a few fusions that use it."""
    chosen = select(FusionInput.fusion_id).where(FusionInput.reference == checkpoint_id)
    return session.scalars(chosen.order_by(FusionInput.fusion_id).limit(3)).all()


def _own(found: Checkpoint | None, tenant: str) -> Checkpoint | None:
    return found if found is not None and found.tenant == tenant else None
