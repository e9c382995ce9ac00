"""One try of one delivery: claimed, sent, and recorded.

A crash before the record leaves the claim to run out; then the message is sent again, with the same id.
"""

from __future__ import annotations

from datetime import timedelta

import structlog

from app.settings import Settings
from app.store import deliveries
from app.store.database import Database
from app.store.deliveries import Miss, Patience
from worker.webhooks.sending import Sender

log = structlog.get_logger("worker.webhooks")

_SLACK = timedelta(seconds=30)  # for the record, after the whole time for one message


class Courier:
    """Brings messages."""

    def __init__(self, database: Database, settings: Settings, sender: Sender) -> None:
        self._database = database
        self._sender = sender
        self._lease = timedelta(seconds=settings.webhook_seconds) + _SLACK
        self._patience = Patience(settings.webhook_delays, timedelta(days=settings.webhook_most_failing_days))

    def deliver(self, delivery_id: str) -> None:
        """Safe to be asked twice, late, or for a delivery that has ended."""
        with self._database.transaction() as session:
            claim = deliveries.claim(session, delivery_id, self._lease, self._patience)
        if claim is None:
            log.info("nothing to do", delivery_id=delivery_id)
            return
        outcome = self._sender.send(claim)
        with self._database.transaction() as session:
            if isinstance(outcome, Miss):
                recorded = deliveries.missed(session, claim, outcome, self._patience)
            else:
                recorded = deliveries.delivered(session, claim, outcome)
        said = {"error": outcome.reason} if isinstance(outcome, Miss) else {"status": outcome}
        log.info(
            "webhook sent",
            delivery_id=delivery_id,
            webhook_id=claim.webhook_id,
            attempt=claim.attempt,
            recorded=recorded,
            **said,
        )
