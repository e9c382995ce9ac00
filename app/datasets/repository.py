"""Every select on datasets."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.ids import is_id
from app.store.models import Dataset, FusionInput


def get(session: Session, tenant: str, dataset_id: str) -> Dataset | None:
    """By id; None if it is another tenant's."""
    return _own(session.get(Dataset, dataset_id) if is_id(dataset_id) else None, tenant)


def get_locked(session: Session, tenant: str, dataset_id: str) -> Dataset | None:
    """By id; nobody else may begin to use or remove it until the transaction ends."""
    return _own(session.get(Dataset, dataset_id, with_for_update=True) if is_id(dataset_id) else None, tenant)


def newest_named(session: Session, tenant: str, name: str) -> Dataset | None:
    """The latest dataset of a name."""
    chosen = select(Dataset).where(Dataset.tenant == tenant, Dataset.name == name).order_by(Dataset.id.desc()).limit(1)
    return session.scalars(chosen).one_or_none()


def page(session: Session, tenant: str, name: str | None, before: str | None, limit: int) -> Sequence[Dataset]:
    """Newest first, from below the id ``before``."""
    chosen = select(Dataset).where(Dataset.tenant == tenant).order_by(Dataset.id.desc()).limit(limit)
    if name is not None:
        chosen = chosen.where(Dataset.name == name)
    if before is not None:
        chosen = chosen.where(Dataset.id < before)
    return session.scalars(chosen).all()


def users(session: Session, dataset_id: str) -> Sequence[str]:
    """Ids of a few fusions that use it."""
    chosen = select(FusionInput.fusion_id).where(FusionInput.reference == dataset_id)
    return session.scalars(chosen.order_by(FusionInput.fusion_id).limit(3)).all()


def _own(found: Dataset | None, tenant: str) -> Dataset | None:
    return found if found is not None and found.tenant == tenant else None
