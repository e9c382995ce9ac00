"""Puts deliveries that are due into the queue: a duty of the dispatcher.

Publishing comes first and its mark second: a crash in between only publishes twice, which the claim answers.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from celery import Celery

from app.settings import Settings
from app.store import deliveries
from app.store.database import Database

DELIVER = "webhooks.deliver"
QUEUE = "io"
_FINITE = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0}


class Deliveries:
    """What the dispatcher does for webhooks."""

    def __init__(self, database: Database, celery: Celery, settings: Settings) -> None:
        self._database = database
        self._celery = celery
        self._repeat_after = timedelta(seconds=settings.republish_seconds)

    def publish_due(self) -> int:
        """Publishes what is due; how many there were."""
        with self._database.reading() as session:
            messages = deliveries.due(session, self._repeat_after)
        if not messages:
            return 0
        with self._broker() as connection:
            for message in messages:
                self._celery.send_task(DELIVER, args=[message.id], queue=QUEUE, connection=connection, retry=False)
                with self._database.transaction() as session:
                    deliveries.published(session, message)
        return len(messages)

    def _broker(self) -> Any:
        """A connection that gives up instead of waiting for a broker that says nothing."""
        return self._celery.connection_for_write(transport_options=_FINITE)
