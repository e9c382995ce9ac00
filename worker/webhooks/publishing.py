"""Puts deliveries that are due into the queue: duties of the dispatcher.

Publishing comes first and its mark second: a crash in between only publishes twice, which the claim answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from celery import Celery

from app.queues import IO
from app.settings import Settings
from app.store import deliveries
from app.store.database import Database
from app.store.deliveries import Due
from worker.queues import connected, depth

DELIVER = "webhooks.deliver"


class Deliveries:
    """What the dispatcher does for webhooks."""

    def __init__(self, database: Database, celery: Celery, settings: Settings) -> None:
        self._database = database
        self._celery = celery
        self._repeat_after = timedelta(seconds=settings.republish_seconds)

    def publish_due(self) -> int:
        """Publishes what is due; how many there were."""
        with self._database.reading() as session:
            messages = deliveries.due(session)
        return self._publish(messages)

    def publish_lost(self) -> int:
        """Publishes again what must have got lost on its way: the queue has fewer messages than it should hold.

        A queue that nobody reads is no reason to repeat anything, so messages don't pile up.
        """
        with self._database.reading() as session:
            waiting = deliveries.waiting(session)
        missing = waiting - depth(self._celery, IO) if waiting else 0
        if missing <= 0:
            return 0
        with self._database.reading() as session:
            messages = deliveries.unanswered(session, self._repeat_after, missing)
        return self._publish(messages)

    def _publish(self, messages: Sequence[Due]) -> int:
        if not messages:
            return 0
        with connected(self._celery) as connection:
            for message in messages:
                self._celery.send_task(DELIVER, args=[message.id], queue=IO, connection=connection, retry=False)
                with self._database.transaction() as session:
                    deliveries.published(session, message)
        return len(messages)
