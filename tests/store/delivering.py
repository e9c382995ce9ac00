"""Webhooks and deliveries as tests need them, and each step of a delivery's life in a transaction of its own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import select, update

from app.signing import new_secret
from app.store import deliveries
from app.store.clock import database_now
from app.store.database import Database
from app.store.deliveries import Miss, Patience
from app.store.ids import new_webhook_id
from app.store.models import Delivery, Webhook
from app.store.ownership import LOCAL

EVERY = [event.value for event in deliveries.WebhookEvent]
LEASE = timedelta(seconds=60)
LAPSED = timedelta(seconds=-1)
PATIENCE = Patience((10.0, 100.0), timedelta(days=5))
ERROR_500 = Miss("Answered 500.", 500)


def new_webhook(database: Database, **changes: Any) -> str:
    fields = {"tenant": LOCAL.tenant, "owner": LOCAL.account, "url": "https://example.com/", "events": EVERY}
    webhook = Webhook(id=new_webhook_id(), **fields | {"secret": new_secret()} | changes)
    with database.transaction() as session:
        session.add(webhook)
    return webhook.id


def new_ping(database: Database, webhook_id: str) -> str:
    with database.transaction() as session:
        return deliveries.ping(session, session.get_one(Webhook, webhook_id)).id


def delivery_row(database: Database, delivery_id: str) -> Delivery:
    with database.reading() as session:
        return session.get_one(Delivery, delivery_id)


def webhook_row(database: Database, webhook_id: str) -> Webhook:
    with database.reading() as session:
        return session.get_one(Webhook, webhook_id)


def claim(database: Database, delivery_id: str, lease: timedelta = LEASE) -> deliveries.Claim | None:
    with database.transaction() as session:
        return deliveries.claim(session, delivery_id, lease, PATIENCE)


def hold(database: Database, delivery_id: str, lease: timedelta = LEASE) -> deliveries.Claim:
    taken = claim(database, delivery_id, lease)
    assert taken is not None
    return taken


def miss(database: Database, held: deliveries.Claim, miss: Miss = ERROR_500) -> bool:
    with database.transaction() as session:
        return deliveries.missed(session, held, miss, PATIENCE)


def arrive(database: Database, held: deliveries.Claim) -> bool:
    with database.transaction() as session:
        return deliveries.delivered(session, held, 204)


def due_now(database: Database) -> list[str]:
    with database.reading() as session:
        return [message.id for message in deliveries.due(session)]


def publish(database: Database) -> list[str]:
    with database.transaction() as session:
        messages = deliveries.due(session)
        for message in messages:
            deliveries.published(session, message)
    return [message.id for message in messages]


def age(database: Database, **columns: timedelta) -> None:
    """Moves moments of every delivery into the past."""
    with database.transaction() as session:
        past = {name: database_now(session) - ago for name, ago in columns.items()}
        session.execute(update(Delivery).values(**past))


def written(database: Database, webhook_id: str) -> list[str]:
    with database.reading() as session:
        chosen = select(Delivery.type).where(Delivery.webhook_id == webhook_id).order_by(Delivery.id)
        return [*session.scalars(chosen)]
