"""Keeps one lease: a thread that renews it, writes events, and sees when the run has to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import copy_context
from enum import Enum
from threading import Event, Thread

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.settings import Settings
from app.store import jobs
from app.store.database import Database
from app.store.states import FusionState
from worker.events import EventWriter, Written

log = structlog.get_logger("worker.keeper")

_WRITE_SECONDS = 0.25  # between two writes of events


class Stop(Enum):
    """Why a run has to stop."""

    LOST = "the lease is lost"
    CANCELLED = "the fusion is cancelled"
    SHUTDOWN = "the worker stops"


class Keeper:
    """The core's thread never waits for the database: it reads ``stop``, and leaves what it tells with ``events``."""

    def __init__(self, database: Database, settings: Settings, claim: jobs.Claim, stopping: Callable[[], bool]) -> None:
        self.events = EventWriter()
        self.stop: Stop | None = None
        self._database = database
        self._claim = claim
        self._stopping = stopping
        self._poll = settings.poll_seconds
        self._lease = settings.lease_seconds
        self._heartbeat = min(settings.heartbeat_seconds, settings.lease_seconds / 3)
        self._renewed = time.monotonic()
        self._written = time.monotonic()
        self._waiting: list[Written] = []
        self._ended = Event()
        self._thread = Thread(
            target=copy_context().run, args=(self._run,), name="lease-keeper", daemon=True
        )  # its lines in the log name the job, too

    @property
    def deadline(self) -> float:
        """When the lease runs out unless it is renewed, on the monotonic clock."""
        return self._renewed + self._lease

    def start(self) -> None:
        """Begins to keep the lease."""
        self._thread.start()

    def end(self) -> None:
        """Keeps it no longer: the caller closes the job now."""
        self._ended.set()
        self._thread.join()

    def write_events(self) -> None:
        """Writes what has gathered since the last time; if the database fails, it waits for the next."""
        taken = self.events.take()
        if taken is not None:
            self._waiting.append(taken)
        if not self._waiting:
            return
        with self._database.transaction() as session:
            held = all(jobs.report(session, self._claim, one.progress, one.events) for one in self._waiting)
        self._waiting.clear()
        self._written = time.monotonic()
        if not held:
            self.stop = Stop.LOST

    def _run(self) -> None:
        while self.stop is not Stop.LOST and not self._ended.wait(self._poll):
            try:
                self._step()
            except SQLAlchemyError as error:
                log.warning("database out of reach", error=str(error))
            except Exception:  # a thread that ended here would leave the attempt without heartbeat and cancel
                log.exception("the lease is kept on after an error")
            if time.monotonic() > self.deadline:
                self.stop = Stop.LOST

    def _step(self) -> None:
        now = time.monotonic()
        if now > self._renewed + self._heartbeat:
            with self._database.transaction() as session:
                jobs.heartbeat(session, self._claim, self._lease)
            self._renewed = now
        with self._database.reading() as session:
            standing = jobs.standing(session, self._claim)
        if standing is None:
            self.stop = Stop.LOST
        elif standing is FusionState.CANCELLING:
            self.stop = Stop.CANCELLED
        elif self._stopping():
            self.stop = Stop.SHUTDOWN
        if now > self._written + _WRITE_SECONDS:  # last: events that can't be written keep nobody from cancelling
            self.write_events()
