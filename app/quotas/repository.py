"""What an account uses: one query each, over an index on the owner."""

from __future__ import annotations

from sqlalchemy import ColumnElement, ScalarSelect, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.store.models import (
    Account,
    Artifact,
    Checkpoint,
    CheckpointFile,
    Dataset,
    Fusion,
    Upload,
    UploadedFile,
)
from app.store.states import FINAL, FusionState

_UNFINISHED = [state for state in FusionState if state not in FINAL]


def account(session: Session, account_id: str) -> Account | None:
    """The account as it is now."""
    return session.get(Account, account_id, populate_existing=True)


def locked_account(session: Session, account_id: str) -> Account | None:
    """The account, held until the transaction ends: what is counted after that, no other can add to."""
    return session.get(Account, account_id, with_for_update=True, populate_existing=True)


def stored_bytes(session: Session, account_id: str) -> int:
    """Logical bytes: what two files share is counted twice, and an upload under way by what it announced."""
    total = (
        _sum(select(_bytes(UploadedFile.size)).where(UploadedFile.owner == account_id))
        + _sum(select(_bytes(CheckpointFile.size)).join(Checkpoint).where(Checkpoint.owner == account_id))
        + _sum(select(_bytes(Dataset.size)).where(Dataset.owner == account_id))
        + _sum(select(_bytes(Upload.length)).where(Upload.owner == account_id, Upload.digest.is_(None)))
        + _sum(select(_bytes(Artifact.size)).join(Fusion).where(Fusion.owner == account_id))
    )
    return int(session.scalars(select(total)).one())


def kept_fusions(session: Session, account_id: str) -> int:
    """Fusions in any state."""
    return session.scalars(select(func.count()).select_from(Fusion).where(Fusion.owner == account_id)).one()


def unfinished_fusions(session: Session, account_id: str) -> int:
    """Fusions that wait or run."""
    chosen = select(func.count()).select_from(Fusion)
    return session.scalars(chosen.where(Fusion.owner == account_id, Fusion.state.in_(_UNFINISHED))).one()


def _bytes(column: InstrumentedAttribute[int]) -> ColumnElement[int]:
    return func.coalesce(func.sum(column), 0)


def _sum(chosen: Select[int]) -> ScalarSelect[int]:
    return chosen.scalar_subquery()
