"""Wakes whoever follows a fusion when the event table has grown.

However many follow, one task asks the database one cheap question every poll, and only while someone listens; a
follower that waits holds no thread and no connection of its own.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app.store.database import Database
from app.store.models import Event

_log = structlog.get_logger(__name__)

# PostgreSQL gives ids before transactions commit: an event may appear below the newest id that was seen, and only a
# look at its own fusion finds it. So the bell rings this often even where nothing seems to be new.
_SILENCE_SECONDS = 1.0


class Bell:
    """Rings when there are new events; ``rings`` counts how often, ``listeners`` who waits."""

    def __init__(self, database: Database, poll_seconds: float) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._next_ring = asyncio.Event()
        self.listeners = 0
        self._task: asyncio.Task[None] | None = None
        self._newest_seen: int | None = None
        self._rang = 0.0
        self.rings = 0
        self.closed = False

    async def wait(self, heard: int, timeout: float) -> None:
        """Returns when the bell has rung since it had rung ``heard`` times, when the time is up, or at the end.

        The caller takes ``rings`` before it looks at the database, so that nothing is missed between look and wait.
        """
        if self.rings != heard or self.closed:
            return
        self.listeners += 1
        if self._task is None or self._task.done():
            self._newest_seen = None
            self._task = asyncio.create_task(self._watch())
        try:
            async with asyncio.timeout(timeout):
                await self._next_ring.wait()
        except TimeoutError:
            return
        finally:
            self.listeners -= 1

    def close(self) -> None:
        """Wakes every follower for the last time: the process is about to end."""
        self.closed = True
        self._ring()

    def _ring(self) -> None:
        self.rings += 1
        self._rang = time.monotonic()
        self._next_ring.set()
        self._next_ring = asyncio.Event()

    async def _watch(self) -> None:
        while self.listeners and not self.closed:
            try:
                newest = await run_in_threadpool(self._newest)
            except SQLAlchemyError:
                _log.exception("bell.database_failed")
                self._ring()  # the followers ask for themselves, and tell
                return
            silent = time.monotonic() - self._rang
            if newest != self._newest_seen or silent > _SILENCE_SECONDS:  # on the first look, too
                self._newest_seen = newest
                self._ring()
            await asyncio.sleep(self._poll_seconds)

    def _newest(self) -> int:
        with self._database.reading() as session:
            return session.scalar(select(func.max(Event.id))) or 0
