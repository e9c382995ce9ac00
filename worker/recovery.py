"""What a worker's parent process does for the jobs of its children: it gives them back when a child no longer can.

The parent opens the database for a moment and closes it again, so that no child is ever forked over an open one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from billiard.exceptions import WorkerLostError
from sqlalchemy.exc import SQLAlchemyError

from app.settings import Settings
from app.store import jobs
from app.store.database import Database
from worker.process import STOPPING, WORKER

log = structlog.get_logger("worker.recovery")


def on_task_failure(args: Any = (), exception: BaseException | None = None, **_signal: Any) -> None:
    """A child died (killed, out of memory, crashed): its job is free at once, not only when its lease runs out."""
    if isinstance(exception, WorkerLostError) and args:
        _give_back([str(args[0])], f"its process died: {exception}")


def on_shutting_down(**_signal: Any) -> None:
    """The worker was asked to stop: so is the fusion it runs, which gives its job back."""
    STOPPING.set()


def on_shutdown(**_signal: Any) -> None:
    """The children are gone; what one of them could not give back in time is given back now."""
    try:
        left = held_jobs()
    except SQLAlchemyError as error:
        log.warning("leases are left to run out", error=str(error))
        return
    _give_back(left, "its worker stopped before the job could let go")


def held_jobs() -> list[str]:
    """The jobs whose lease this worker holds."""
    with _opened() as database, database.reading() as session:
        return [*jobs.held_by(session, WORKER)]


def _give_back(fusion_ids: list[str], seen: str) -> None:
    for fusion_id in fusion_ids:
        log.warning("job given back", fusion_id=fusion_id, seen=seen)
        try:
            with _opened() as database, database.transaction() as session:
                jobs.abandon(session, fusion_id, WORKER, seen, Settings().max_attempts)
        except SQLAlchemyError as error:
            log.warning("lease is left to run out", fusion_id=fusion_id, error=str(error))


@contextmanager
def _opened() -> Iterator[Database]:
    database = Database(Settings().resolved_database_url)
    try:
        yield database
    finally:
        database.close()
