"""What a worker's parent process does for the jobs of its children: it gives them back when a child no longer can.

The parent opens the database for a moment and closes it again, so that no child is ever forked over an open one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.settings import Settings
from app.store import jobs
from app.store.database import Database
from worker.process import STOPPING, WORKER, name_of

log = structlog.get_logger("worker.recovery")


def on_child_exit(child: int, code: int | None) -> None:
    """A child died (killed, out of memory, crashed): its job is free at once, not only when its lease runs out."""
    _give_back(name_of(child), f"its process died: {_in_words(code)}")


def on_shutting_down(**_signal: Any) -> None:
    """The worker was asked to stop, by SIGTERM or SIGINT: so is the fusion it runs, which gives its job back."""
    STOPPING.set()


def on_shutdown(**_signal: Any) -> None:
    """The children are gone; what one of them could not give back in time is given back now."""
    _give_back(WORKER, "its worker stopped before the job could let go")


def held_jobs() -> list[str]:
    """The jobs whose lease a child of this worker holds."""
    with opened() as database, database.reading() as session:
        return [*jobs.held_by(session, WORKER)]


def _give_back(holder: str, seen: str) -> None:
    try:
        with opened() as database, database.transaction() as session:
            for fusion_id in jobs.held_by(session, holder):
                log.warning("job given back", fusion_id=fusion_id, seen=seen)
                jobs.abandon(session, fusion_id, holder, seen, Settings().max_attempts)
    except SQLAlchemyError as error:
        log.warning("leases are left to run out", holder=holder, error=str(error))


def _in_words(code: int | None) -> str:
    if code is None:
        return "nobody knows how"
    return f"signal {-code} ({Signals(-code).name})" if code < 0 else f"exit code {code}"


@contextmanager
def opened(patience: int | None = None) -> Iterator[Database]:
    """For one step: see above; one that others wait for has ``patience`` for so many seconds only."""
    database = Database(Settings().resolved_database_url, patience)
    try:
        yield database
    finally:
        database.close()
