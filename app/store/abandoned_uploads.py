"""Removes resumable uploads whose time is over, with their bytes. Several processes at once do no harm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import structlog
from sqlalchemy import delete, select
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from app.store.clock import database_now
from app.store.database import Database
from app.store.models import Upload
from app.store.staging import NotStaged, Staging, UploadBusy

_BATCH = 100
_UNTOLD_SECONDS = 3600.0  # files come before their row; a process that dies between the two leaves files alone
_log = structlog.get_logger(__name__)


def remove_abandoned(database: Database, staging: Staging) -> None:
    """One round: expired uploads, then files that no row tells of."""
    with database.reading() as session:
        expired = _expired(session)
    for upload_id in expired:
        _remove_expired(database, staging, upload_id)
    _remove_untold(database, staging)


def _remove_expired(database: Database, staging: Staging, upload_id: str) -> None:
    """Unless somebody appends to it just now, or has prolonged it."""
    try:
        held = staging.open(upload_id)
    except UploadBusy:
        return
    except NotStaged:  # complete, or its files are gone: there is only the row to remove
        held = None
    try:
        with database.transaction() as session:
            removed = _delete_expired(session, upload_id)
        if removed:
            _log.info("upload expired", upload_id=upload_id)
            if held is not None:
                held.discard()
            else:
                staging.discard(upload_id)
    finally:
        if held is not None:
            held.release()


def _remove_untold(database: Database, staging: Staging) -> None:
    oldest = time.time() - _UNTOLD_SECONDS
    old = sorted({upload_id for upload_id, changed in staging.found() if changed < oldest})
    for begin in range(0, len(old), _BATCH):
        some = old[begin : begin + _BATCH]
        with database.reading() as session:
            told = set(session.scalars(select(Upload.id).where(Upload.id.in_(some))))
        for upload_id in some:
            if upload_id not in told:
                _discard(staging, upload_id)


def _discard(staging: Staging, upload_id: str) -> None:
    with suppress(UploadBusy):
        try:
            staging.open(upload_id).discard()
        except NotStaged:
            staging.discard(upload_id)


def _expired(session: Session) -> Sequence[str]:
    chosen = select(Upload.id).where(Upload.expires_at <= database_now(session)).order_by(Upload.expires_at)
    return session.scalars(chosen.limit(_BATCH)).all()


def _delete_expired(session: Session, upload_id: str) -> bool:
    result = session.execute(delete(Upload).where(Upload.id == upload_id, Upload.expires_at <= database_now(session)))
    assert isinstance(result, CursorResult)
    return result.rowcount == 1
