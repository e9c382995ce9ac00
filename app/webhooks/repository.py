"""Every select on webhooks and their deliveries."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from app.store.ids import is_id
from app.store.models import Delivery, Webhook

_COUNTING = 0x77656268  # "webh": the kind of lock; beside it, the tenant is only a number


def get(session: Session, tenant: str, webhook_id: str) -> Webhook | None:
    """By id; None if it is another tenant's."""
    return _own(session.get(Webhook, webhook_id) if is_id(webhook_id) else None, tenant)


def get_locked(session: Session, tenant: str, webhook_id: str) -> Webhook | None:
    """By id, held until the transaction ends; no delivery to it can be written meanwhile."""
    return _own(session.get(Webhook, webhook_id, with_for_update=True) if is_id(webhook_id) else None, tenant)


def count_alone(session: Session, tenant: str) -> int:
    """How many the tenant has; no other can count and add until the transaction ends."""
    # A tenant has no row to lock. SQLite's transactions begin with its only write lock.
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_COUNTING, func.hashtext(tenant))))
    return session.scalars(select(func.count()).select_from(Webhook).where(Webhook.tenant == tenant)).one()


def page(session: Session, tenant: str, before: str | None, limit: int) -> Sequence[Webhook]:
    """Newest first, from below the id ``before``."""
    chosen = select(Webhook).where(Webhook.tenant == tenant).order_by(Webhook.id.desc()).limit(limit)
    if before is not None:
        chosen = chosen.where(Webhook.id < before)
    return session.scalars(chosen).all()


def delete_all_of(session: Session, webhook: Webhook) -> None:
    """Removes the webhook and its deliveries; it is locked."""
    session.execute(delete(Delivery).where(Delivery.webhook_id == webhook.id))
    session.execute(delete(Webhook).where(Webhook.id == webhook.id))


def delivery(session: Session, webhook: Webhook, delivery_id: str) -> Delivery | None:
    """By id; None if it is another webhook's."""
    found = session.get(Delivery, delivery_id) if is_id(delivery_id) else None
    return found if found is not None and found.webhook_id == webhook.id else None


def deliveries(session: Session, webhook: Webhook, before: str | None, limit: int) -> Sequence[Delivery]:
    """Newest first, from below the id ``before``."""
    chosen = select(Delivery).where(Delivery.webhook_id == webhook.id).order_by(Delivery.id.desc()).limit(limit)
    if before is not None:
        chosen = chosen.where(Delivery.id < before)
    return session.scalars(chosen).all()


def _own(found: Webhook | None, tenant: str) -> Webhook | None:
    return found if found is not None and found.tenant == tenant else None
