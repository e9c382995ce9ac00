"""Every select on fusions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.ids import is_id
from app.store.models import Checkpoint, Dataset, Fusion, FusionInput
from app.store.retention import remove_fusion
from app.store.states import FusionState


def get(session: Session, tenant: str, fusion_id: str) -> Fusion | None:
    """By id; None if it is another tenant's."""
    return _own(session.get(Fusion, fusion_id) if is_id(fusion_id) else None, tenant)


def get_locked(session: Session, tenant: str, fusion_id: str) -> Fusion | None:
    """By id, held until the transaction ends."""
    return _own(session.get(Fusion, fusion_id, with_for_update=True) if is_id(fusion_id) else None, tenant)


def page(
    session: Session, tenant: str, states: Collection[FusionState], before: str | None, limit: int
) -> Sequence[Fusion]:
    """Newest first, from below the id ``before``."""
    chosen = select(Fusion).where(Fusion.tenant == tenant).order_by(Fusion.id.desc()).limit(limit)
    if states:
        chosen = chosen.where(Fusion.state.in_(states))
    if before is not None:
        chosen = chosen.where(Fusion.id < before)
    return session.scalars(chosen).all()


def inputs_of(session: Session, fusion_id: str) -> set[str]:
    """The ids of the checkpoints and datasets that it uses."""
    return set(session.scalars(select(FusionInput.reference).where(FusionInput.fusion_id == fusion_id)))


def hold_inputs(session: Session, ids: Collection[str]) -> set[str]:
    """Which of these checkpoints and datasets exist; none of them can be removed until the transaction ends."""
    held = select(Checkpoint.id).where(Checkpoint.id.in_(ids)).order_by(Checkpoint.id)
    found = set(session.scalars(held.with_for_update(read=True)))
    held = select(Dataset.id).where(Dataset.id.in_(ids)).order_by(Dataset.id)
    return found | set(session.scalars(held.with_for_update(read=True)))


def delete_all_of(session: Session, fusion: Fusion) -> None:
    """Removes the fusion and every row that belongs to it."""
    remove_fusion(session, fusion.id)


def _own(found: Fusion | None, tenant: str) -> Fusion | None:
    return found if found is not None and found.tenant == tenant else None
