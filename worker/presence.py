"""A worker's parent process tells the database that it lives and which queues it serves, so that a job that nobody
will take is seen.

In a thread, since a broker that is away stops Celery's own loop. The thread has the database, and whatever locks come
with it, only under a lock of its own that every fork of a child takes first: no child finds one of them held. It holds
that lock for seconds at most, whatever the database does: a beat that is missed does no harm.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from threading import Event, Lock, Thread
from typing import Any

import structlog
from celery.worker import state
from sqlalchemy.orm import Session

from app.settings import Settings
from app.store import workers
from worker import recovery
from worker.process import STOPPING, WORKER

_PATIENCE = 3  # seconds that a fork, or the worker's end, may wait for each step of the database

log = structlog.get_logger("worker.presence")


class Presence:
    """Begins with the worker, and ends with its last job or when it is asked to stop."""

    def __init__(self, queues: Collection[str], settings: Settings) -> None:
        self._queues = queues
        self._beat = min(settings.heartbeat_seconds, settings.lease_seconds / 3)
        self._ended = Event()
        self._no_fork = Lock()
        self._told = True

    def begin(self, **_signal: Any) -> None:
        """From now on this worker counts, also while it still loads what its children will need."""
        os.register_at_fork(
            before=self._no_fork.acquire,
            after_in_parent=self._no_fork.release,
            after_in_child=self._no_fork.release,
        )
        Thread(target=self._run, name="presence", daemon=True).start()

    def end(self, **_signal: Any) -> None:
        """The worker has come to a normal end; one that is killed is gone when it has been silent for long."""
        self._ended.set()
        with self._no_fork:
            self._write(self._leave)

    def _run(self) -> None:
        taking = True
        while taking:
            with self._no_fork:
                if self._ended.is_set():
                    return
                taking = state.should_stop is None and not STOPPING.is_set()
                self._write(self._sign if taking else self._leave)
            self._ended.wait(self._beat)

    def _sign(self, session: Session) -> None:
        workers.sign(session, WORKER, self._queues)

    def _leave(self, session: Session) -> None:
        workers.leave(session, WORKER)

    def _write(self, step: Callable[[Session], None]) -> None:
        """Whatever is wrong, the next beat tries again: a thread that ended would have the worker taken for gone."""
        try:
            with recovery.opened(_PATIENCE) as database, database.transaction() as session:
                step(session)
        except Exception as error:
            if self._told:
                log.warning("presence not told", error=str(error))
            self._told = False
        else:
            if not self._told:
                log.info("presence told again")
            self._told = True
