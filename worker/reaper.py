"""Brings back what dead workers left: their jobs, and their folders."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from app.settings import Settings
from app.store import jobs
from app.store.abandoned_uploads import remove_abandoned
from app.store.blobs import Incoming
from app.store.database import Database
from app.store.models import Fusion
from app.store.staging import Staging
from app.store.states import FINAL, FusionState
from worker.workspace import attempts, keep_journal, remove_if_empty

log = structlog.get_logger("worker.reaper")

_ABANDONED = timedelta(days=1)  # an upload by PUT that has brought nothing for that long


def reap(database: Database, settings: Settings) -> None:
    """One round; several reapers at once do no harm."""
    with database.transaction() as session:
        lost = jobs.requeue_expired(session, settings.max_attempts)
    for fusion_id in lost:
        log.warning("lease ran out", fusion_id=fusion_id)
    sweep(database, settings.work_dir)
    if settings.incoming_dir.is_dir():
        Incoming(settings.incoming_dir).sweep(_ABANDONED)
    remove_abandoned(database, Staging(settings.uploads_dir))


def sweep(database: Database, work_dir: Path) -> None:
    """Clears up after every fusion that has folders."""
    if not work_dir.is_dir():
        return
    for fusion_dir in sorted(work_dir.glob("fus_*")):
        sweep_fusion(database, fusion_dir)


def sweep_fusion(database: Database, fusion_dir: Path) -> None:
    """Removes the folders of a fusion that has ended; before that, what earlier attempts left beside their journals.

    The folders are listed before the database is asked, so that an attempt begun in between is not taken for an old
    one.
    """
    found = attempts(fusion_dir)
    with database.reading() as session:
        current = _current_attempt(session, fusion_dir.name)
    for attempt, path in found:
        if current is None:
            log.info("folder removed", fusion_id=fusion_dir.name, attempt=attempt)
            shutil.rmtree(path, ignore_errors=True)  # its worker may be removing it, too
        elif attempt < current:
            keep_journal(path)
    if current is None:
        remove_if_empty(fusion_dir)


def _current_attempt(session: Session, fusion_id: str) -> int | None:
    """The attempt that a worker may be at; None if the fusion has ended or is gone."""
    fusion = session.get(Fusion, fusion_id)
    if fusion is None or fusion.state in FINAL:
        return None
    return fusion.attempt + 1 if fusion.state is FusionState.QUEUED else fusion.attempt
