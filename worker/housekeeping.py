"""What keeps the store from growing for ever: rows that have had their time go first, then blobs that nobody refers to.

In a thread of the dispatcher's own: removing a large blob, or one of a far storage, takes longer than a job should wait.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.settings import Settings
from app.store import deliveries, retention, workers
from app.store.blobs import Collector, StorageError, open_storage
from app.store.database import Database
from worker.duties import Duties, Duty

log = structlog.get_logger("worker.housekeeping")

_BATCH = 20
_RETENTION_SECONDS = 60.0

Expire = Callable[[Session, timedelta, int], int]


def housekeeping(database: Database, settings: Settings) -> Duties:
    """Several processes may do it at once."""
    collector = Collector(database, open_storage(settings), timedelta(seconds=settings.collect_grace_seconds))
    # Bytes without a row are the leftovers of old accidents: looking for them means looking at every file.
    orphans = max(settings.collect_seconds, settings.collect_grace_seconds)
    duties = [
        Duty(lambda: expire(database, settings), min(settings.collect_seconds, _RETENTION_SECONDS)),
        Duty(lambda: forget_workers(database, settings), _RETENTION_SECONDS),
        Duty(collector.collect, settings.collect_seconds),
        Duty(collector.adopt_orphans, orphans),
    ]
    return Duties(duties, (SQLAlchemyError, StorageError))


def expire(database: Database, settings: Settings) -> None:
    """One round of everything that is kept for a time only."""
    kept: list[tuple[str, Expire, float]] = [
        ("fusions", retention.expire_fusions, settings.keep_fusions_days),
        ("uploaded_files", retention.expire_loose_files, settings.keep_loose_files_days),
        ("checkpoints", retention.expire_checkpoints, settings.keep_unused_inputs_days),
        ("datasets", retention.expire_datasets, settings.keep_unused_inputs_days),
        ("idempotent_calls", retention.expire_idempotent_calls, settings.keep_idempotent_calls_days),
        ("deliveries", deliveries.forget, settings.webhook_keep_days),
    ]
    for name, step, days in kept:
        if days:
            _expire(database, name, step, timedelta(days=days))


def forget_workers(database: Database, settings: Settings) -> None:
    """Those that were killed; who comes to a normal end goes by itself."""
    with database.transaction() as session:
        gone = workers.forget(session, timedelta(seconds=settings.lease_seconds))
    if gone:
        log.info("workers gone", rows=gone)


def _expire(database: Database, name: str, step: Expire, age: timedelta) -> None:
    gone = _BATCH
    while gone == _BATCH:
        with database.transaction() as session:
            gone = step(session, age, _BATCH)
        if gone:
            log.info("expired", what=name, rows=gone)
