"""Publishes job ids from the outbox to the queue, and reaps. ``python -m worker.dispatcher``.

Publishing comes first and its mark second: a crash in between only publishes twice, which the claim answers. Several
dispatchers at once do no harm either.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from sqlalchemy.exc import SQLAlchemyError

from app.logs import configure_logging
from app.settings import Settings
from app.store import outbox
from app.store.database import Database
from worker.celery_app import RUN_FUSION, app
from worker.reaper import reap
from worker.webhooks.publishing import Deliveries

log = structlog.get_logger("worker.dispatcher")

_BATCH = 100
_SELDOM_SECONDS = 5.0
_RARELY_SECONDS = 600.0
_MOST_BACKOFF_SECONDS = 5.0
_FINITE = {"socket_timeout": 5.0, "socket_connect_timeout": 5.0}


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
        missing = waiting - self._depth(queue)
        if missing <= 0:
            return []
        age = timedelta(seconds=self._settings.republish_seconds)
        with self._database.reading() as session:
            return outbox.unanswered(session, queue, age, min(missing, _BATCH))

    def _publish(self, messages: Sequence[outbox.Message]) -> int:
        if not messages:
            return 0
        with self._broker() as connection:
            for message in messages:
                self._celery.send_task(
                    RUN_FUSION, args=[message.fusion_id], queue=message.queue, connection=connection, retry=False
                )
                with self._database.transaction() as session:
                    outbox.published(session, message.id)
                log.info("published", fusion_id=message.fusion_id, queue=message.queue)
        return len(messages)

    def _depth(self, queue: str) -> int:
        with self._broker() as connection, connection.channel() as channel:
            declared = self._celery.amqp.queues[queue](channel).queue_declare()
            return int(declared.message_count)

    def _broker(self) -> Any:
        """A connection that gives up instead of waiting for a broker that says nothing."""
        return self._celery.connection_for_write(transport_options=_FINITE)


class Rounds:
    """Repeats each duty in its own time; one that fails is tried again later and later, and never stops the others."""

    def __init__(self, database: Database, celery: Celery, settings: Settings) -> None:
        dispatcher = Dispatcher(database, celery, settings)
        deliveries = Deliveries(database, celery, settings)
        seldom = min(_SELDOM_SECONDS, settings.lease_seconds / 4)
        self._duties = [
            _Duty(dispatcher.publish_new, settings.poll_seconds),
            _Duty(deliveries.publish_due, settings.poll_seconds),
            _Duty(dispatcher.publish_lost, seldom),
            _Duty(lambda: reap(database, settings), seldom),
            _Duty(deliveries.forget_old, _RARELY_SECONDS),
        ]
        self._outages = (SQLAlchemyError, OperationalError, *celery.connection_for_write().connection_errors)

    def run(self) -> NoReturn:
        """Until the process ends."""
        while True:
            self.attend_due()
            time.sleep(max(0.0, min(duty.due for duty in self._duties) - time.monotonic()))

    def attend_due(self) -> None:
        """Each duty whose time has come; at first, all of them."""
        for duty in self._duties:
            if duty.due <= time.monotonic():
                self._attend(duty)

    def _attend(self, duty: _Duty) -> None:
        try:
            duty.step()
        except self._outages as error:
            duty.failures += 1
            log.warning("out of reach", error=f"{type(error).__name__}: {error}", failures=duty.failures)
        except Exception:  # one duty's mistake must not end the others
            duty.failures += 1
            log.exception("duty failed", failures=duty.failures)
        else:
            duty.failures = 0
        backoff = min(0.2 * 2**duty.failures, _MOST_BACKOFF_SECONDS) if duty.failures else 0.0
        duty.due = time.monotonic() + max(duty.every, backoff)


@dataclass
class _Duty:
    step: Callable[[], object]
    every: float
    due: float = 0.0
    failures: int = 0


def main() -> None:
    """Runs until SIGTERM or SIGINT, which end it wherever it is: a crash would be safe at any moment, too."""
    configure_logging()
    settings = Settings()

    def end(_signal: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    database = Database(settings.resolved_database_url)
    Rounds(database, app, settings).run()


if __name__ == "__main__":
    main()
