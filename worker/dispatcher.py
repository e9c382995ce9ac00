"""Publishes job ids from the outbox to the queue, and reaps. ``python -m worker.dispatcher``.

Publishing comes first and its mark second: a crash in between only publishes twice, which the claim answers. Several
dispatchers at once do no harm either.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from threading import Thread
from types import FrameType
from typing import NoReturn

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from app.logs import configure_logging
from app.settings import Settings
from app.store import outbox
from app.store.database import Database
from worker.celery_app import RUN_FUSION, app
from worker.duties import Duties, Duty
from worker.housekeeping import housekeeping
from worker.metrics import serve_dispatcher
from worker.queues import connected, depth
from worker.reaper import reap
from worker.webhooks.publishing import Deliveries

log = structlog.get_logger("worker.dispatcher")

_BATCH = 100
_SELDOM_SECONDS = 5.0


class Dispatcher:
    """One step at a time; what a step could not do, the next one does."""

    def __init__(self, database: Database, celery: Celery, settings: Settings) -> None:
        self._database = database
        self._celery = celery
        self._settings = settings

    def publish_new(self) -> int:
        """Publishes what never was; how many there were."""
        with self._database.reading() as session:
            messages = outbox.unpublished(session, _BATCH)
        return self._publish(messages)

    def publish_lost(self) -> int:
        """Publishes again what must have got lost on its way: a queue has fewer messages than jobs waiting for it.

        A long queue is no reason to repeat anything, so messages don't pile up however long jobs wait.
        """
        with self._database.reading() as session:
            waiting = outbox.waiting(session)
        return sum(self._publish(self._missing(queue, count)) for queue, count in waiting.items())

    def _missing(self, queue: str, waiting: int) -> list[outbox.Message]:
        missing = waiting - depth(self._celery, queue)
        if missing <= 0:
            return []
        age = timedelta(seconds=self._settings.republish_seconds)
        with self._database.reading() as session:
            return outbox.unanswered(session, queue, age, min(missing, _BATCH))

    def _publish(self, messages: Sequence[outbox.Message]) -> int:
        if not messages:
            return 0
        sent: list[outbox.Message] = []
        try:
            with connected(self._celery) as connection:
                for message in messages:
                    self._celery.send_task(
                        RUN_FUSION, args=[message.fusion_id], queue=message.queue, connection=connection, retry=False
                    )
                    sent.append(message)
        finally:  # also when the broker went away in the middle
            with self._database.transaction() as session:  # one for all: on disk, each takes as long as many
                outbox.published(session, sent)
        log.info("published", fusion_ids=[message.fusion_id for message in sent])
        return len(sent)


class Rounds(Duties):
    """All that a dispatcher does without keeping jobs waiting."""

    def __init__(self, database: Database, celery: Celery, settings: Settings) -> None:
        dispatcher = Dispatcher(database, celery, settings)
        deliveries = Deliveries(database, celery, settings)
        seldom = min(_SELDOM_SECONDS, settings.lease_seconds / 4)
        duties = [
            Duty(dispatcher.publish_new, settings.poll_seconds / 2),  # what every job waits for
            Duty(deliveries.publish_due, settings.poll_seconds),
            Duty(dispatcher.publish_lost, seldom),
            Duty(deliveries.publish_lost, seldom),
            Duty(lambda: reap(database, settings), seldom),
        ]
        super().__init__(duties, (SQLAlchemyError, OperationalError, *celery.connection_for_write().connection_errors))


def main() -> None:
    """Runs until SIGTERM or SIGINT, which end it wherever it is: a crash would be safe at any moment, too."""
    configure_logging()
    settings = Settings()

    def end(_signal: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    database = Database(settings.resolved_database_url)
    Thread(target=housekeeping(database, settings).run, name="housekeeping", daemon=True).start()
    rounds = Rounds(database, app, settings)
    serve_dispatcher(settings, database, rounds)
    rounds.run()


if __name__ == "__main__":
    main()
