"""Keeps one lease: a thread that renews it, writes events, and sees when the run has to stop, or stands still."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
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


def _tell_nobody(_deadline: float) -> None:
    return None


@dataclass(frozen=True)
class Holder:
    """Who holds leases: a process of this name, asked by ``stopping`` whether it has to let go.

    ``tell_deadline`` takes when its lease runs out, and 0 when it holds none.
    """

    name: str
    stopping: Callable[[], bool]
    tell_deadline: Callable[[float], None] = _tell_nobody


class Keeper:
    """The core's thread never waits for the database: it reads ``stop``, and leaves what it tells with ``events``.

    Whatever the core tells or asks is a sign of life. Without any for ``stall_seconds`` the attempt is given up, and the
    process with it: a call that never returns can't be stopped in any other way.
    """

    def __init__(self, database: Database, settings: Settings, claim: jobs.Claim, holder: Holder) -> None:
        self.events = EventWriter()
        self._stop: Stop | None = None
        self._database = database
        self._claim = claim
        self._holder = holder
        self._poll = settings.poll_seconds
        self._lease = settings.lease_seconds
        self._stall = settings.stall_seconds
        self._most_attempts = settings.max_attempts
        self._sign = time.monotonic()
        self._doing = "before its first stage"
        self._heartbeat = min(settings.heartbeat_seconds, settings.lease_seconds / 3)
        self._renewed = time.monotonic()
        self._written = time.monotonic()
        self._waiting: list[Written] = []
        self._ended = Event()
        self._thread = Thread(
            target=copy_context().run, args=(self._run,), name="lease-keeper", daemon=True
        )  # its lines in the log name the job, too

    @property
    def stop(self) -> Stop | None:
        """Why the run has to stop. A lease that nobody renews any more is lost, even if this thread should have died."""
        if self._stop is None and time.monotonic() > self.deadline:
            return Stop.LOST
        return self._stop

    def alive(self, doing: str | None = None) -> None:
        """The core has given a sign of life; ``doing`` says where it is from now on."""
        self._sign = time.monotonic()
        self._doing = doing or self._doing

    @property
    def deadline(self) -> float:
        """When the lease runs out unless it is renewed, on the monotonic clock."""
        return self._renewed + self._lease

    def start(self) -> None:
        """Begins to keep the lease."""
        self._holder.tell_deadline(self.deadline)
        self._thread.start()

    def end(self) -> None:
        """Keeps it no longer: the caller closes the job now, before ``deadline``."""
        self._ended.set()
        self._thread.join()

    def over(self) -> None:
        """The job is closed, or lost."""
        self._holder.tell_deadline(0.0)

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
            self._stop = Stop.LOST

    def _run(self) -> None:
        while self._stop is not Stop.LOST and not self._ended.wait(self._poll):
            try:
                self._step()
            except SQLAlchemyError as error:
                log.warning("database out of reach", error=str(error))
            except Exception:  # a thread that ended here would leave the attempt without heartbeat and cancel
                log.exception("the lease is kept on after an error")
            if time.monotonic() > self.deadline:
                self._stop = Stop.LOST
            silent = time.monotonic() - self._sign
            if silent > self._stall:
                self._give_up(silent)

    def _step(self) -> None:
        now = time.monotonic()
        if now > self._renewed + self._heartbeat:
            with self._database.transaction() as session:
                jobs.heartbeat(session, self._claim, self._lease)
            self._renewed = now
            self._holder.tell_deadline(self.deadline)
        with self._database.reading() as session:
            standing = jobs.standing(session, self._claim)
        if standing is None:
            self._stop = Stop.LOST
        elif standing is FusionState.CANCELLING:
            self._stop = Stop.CANCELLED
        elif self._holder.stopping():
            self._stop = Stop.SHUTDOWN
        if now > self._written + _WRITE_SECONDS:  # last: events that can't be written keep nobody from cancelling
            self.write_events()

    def _give_up(self, silent: float) -> None:
        seen = f"stalled: no sign of life for {silent:.0f} s {self._doing}"
        log.error("attempt given up", seen=seen)
        try:
            self.write_events()
            with self._database.transaction() as session:
                jobs.give_up(session, self._claim, seen, self._most_attempts)
        except SQLAlchemyError as error:  # the parent gives the job back, though without these words
            log.warning("database out of reach", error=str(error))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
