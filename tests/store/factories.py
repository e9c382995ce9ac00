"""Jobs in any state, made only by the moves that the service itself makes."""

from __future__ import annotations

from sqlalchemy.orm import selectinload

from app.store import jobs
from app.store.database import Database
from app.store.ids import FusionId
from app.store.models import Fusion
from app.store.ownership import LOCAL
from app.store.states import FusionState

WORKER = "host:1"
LONG = 3600.0
EXPIRED = -1.0
ATTEMPTS = 3
ERROR = {"code": "recipe.invalid", "detail": "No.", "errors": []}


def queued(database: Database) -> FusionId:
    with database.transaction() as session:
        return FusionId(jobs.submit(session, LOCAL, {"device": "cpu"}, ["ckpt_a", "ckpt_b"]).id)


def claimed(
    database: Database, fusion_id: FusionId, worker: str = WORKER, lease: float = LONG, attempts: int = ATTEMPTS
) -> jobs.Claim | None:
    with database.transaction() as session:
        return jobs.claim(session, fusion_id, worker, lease, attempts)


def running(database: Database, worker: str = WORKER, lease: float = LONG) -> jobs.Claim:
    claim = claimed(database, queued(database), worker, lease)
    assert claim is not None
    return claim


def in_state(database: Database, state: FusionState) -> jobs.Claim:
    """A job in ``state``, and the claim of the last worker that had it (never valid for a job still queued)."""
    if state == FusionState.QUEUED:
        return jobs.Claim(queued(database), 0, WORKER, {})
    claim = running(database)
    with database.transaction() as session:
        if state == FusionState.SUCCEEDED:
            assert jobs.finish_succeeded(session, claim, {}, [])
        elif state == FusionState.FAILED:
            assert jobs.finish_failed(session, claim, ERROR)
        elif state in {FusionState.CANCELLING, FusionState.CANCELLED}:
            jobs.request_cancel(session, claim.fusion_id)
        if state == FusionState.CANCELLED:
            assert jobs.finish_cancelled(session, claim)
    assert row(database, claim.fusion_id).state == state
    return claim


def row(database: Database, fusion_id: str) -> Fusion:
    with database.reading() as session:
        fusion = session.get(Fusion, fusion_id, options=[selectinload(Fusion.artifacts)])
        assert fusion is not None
        return fusion
