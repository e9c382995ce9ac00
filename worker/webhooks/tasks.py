"""The task: the message says which delivery, the database says everything else."""

from __future__ import annotations

from functools import cache

from app.settings import Settings
from app.store.database import Database
from worker.celery_app import app
from worker.webhooks.courier import Courier
from worker.webhooks.publishing import DELIVER
from worker.webhooks.sending import Sender


def deliver(delivery_id: str) -> None:
    """Safe to deliver twice, late, or for a delivery that has ended."""
    _courier().deliver(delivery_id)


@cache
def _courier() -> Courier:
    """Opened in the process that runs tasks: the one that forks never has the database open."""
    settings = Settings()
    return Courier(Database(settings.resolved_database_url), settings, Sender(settings))


app.task(deliver, name=DELIVER)
