"""Messages to webhooks: written with the event that they tell of, and due until they are delivered or given up.

Only these functions change a delivery's state. ``attempts`` is the fencing token of whoever is sending; ``due_at`` is
when the next try may begin, and while one is under way, when it counts as lost. So a message is sent at least once,
never twice at the same time, and with the same id at every try. Who writes to both locks the webhook first.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from sqlalchemy import ColumnElement, SQLColumnExpression, and_, case, delete, func, or_, select, update
from sqlalchemy.orm import Session

from app.store.clock import database_now
from app.store.events import EventType
from app.store.ids import DeliveryId, WebhookId, new_delivery_id
from app.store.models import Delivery, Fusion, Webhook

_IN_FLIGHT = 200  # messages in the queue at once; the rest wait here, where nothing gets lost
_IN_FLIGHT_EACH = 4  # of one webhook, so that a slow receiver doesn't keep others waiting
_MANY_FAILURES = 10
_JITTER = (0.8, 1.2)
_LOST = "The sender was lost in the middle of the last try."
_DISABLED = "The webhook is disabled."


class WebhookEvent(StrEnum):
    """What a webhook can be told of."""

    STARTED = "fusion.started"
    SUCCEEDED = "fusion.succeeded"
    FAILED = "fusion.failed"
    CANCELLED = "fusion.cancelled"


PING = "webhook.ping"


class DeliveryState(StrEnum):
    """Where a delivery stands; the last two are final until someone asks for it again."""

    PENDING = "pending"
    SENDING = "sending"
    DELIVERED = "delivered"
    FAILED = "failed"


class DisabledReason(StrEnum):
    """Why a webhook is told nothing any more."""

    ASKED = "asked"
    GONE = "gone"  # the receiver answered 410
    FAILING = "failing"  # for days


@dataclass(frozen=True)
class Patience:
    """How often a delivery is tried, and for how long a webhook may fail."""

    delays: Sequence[float]  # seconds before each further try
    most_failing: timedelta


@dataclass(frozen=True)
class Due:
    """A delivery whose next try may begin."""

    id: DeliveryId
    attempts: int


@dataclass(frozen=True)
class Claim:
    """One sender's hold on one try of a delivery, and all that it sends."""

    id: DeliveryId
    webhook_id: WebhookId
    attempt: int
    url: str
    secrets: tuple[str, ...]
    body: str


@dataclass(frozen=True)
class Miss:
    """A try that did not deliver."""

    reason: str
    status: int | None = None  # of the answer, if there was one

    @property
    def gone(self) -> bool:
        """Whether the receiver asks never to be called again."""
        return self.status == HTTPStatus.GONE


def announce(session: Session, fusion_id: str, kind: EventType) -> None:
    """Writes a delivery for every webhook of the fusion's tenant that wants to know; after the fusion's row was moved.

    The webhooks can't be removed until the transaction ends, so the new rows never refer to one that is gone.
    """
    event = WebhookEvent(f"fusion.{kind.value}")
    listening = (
        select(Webhook)
        .join(Fusion, Fusion.tenant == Webhook.tenant)
        .where(Fusion.id == fusion_id, Webhook.disabled_at.is_(None))
        .order_by(Webhook.id)
        .with_for_update(read=True, key_share=True, of=Webhook)
    )
    webhooks = [webhook for webhook in session.scalars(listening) if event.value in webhook.events]
    if not webhooks:
        return
    now = database_now(session)
    body = _document(event.value, now, _facts(session, fusion_id))
    session.add_all(_new(webhook.id, event.value, body, now, fusion_id) for webhook in webhooks)
    session.flush()


def ping(session: Session, webhook: Webhook) -> Delivery:
    """A message that tells of nothing but that the address is right."""
    now = database_now(session)
    delivery = _new(webhook.id, PING, _document(PING, now, {"webhook_id": webhook.id}), now)
    session.add(delivery)
    session.flush()
    return delivery


def waiting_pings(session: Session, webhook: Webhook) -> int:
    """How many of them have not ended; the caller has locked the webhook."""
    chosen = select(func.count()).select_from(Delivery).where(Delivery.webhook_id == webhook.id, Delivery.type == PING)
    return session.scalars(chosen.where(Delivery.state.in_((DeliveryState.PENDING, DeliveryState.SENDING)))).one()


def due(session: Session) -> list[Due]:
    """What is to be published now: as much as the queue should hold, little of each webhook.

    Tenants take turns at the room that is free, whatever each has under way counted as turns it had; what others leave
    is anyone's, so that a tenant alone has all of it. A tenant's own turns go round its webhooks.
    """
    now = database_now(session)
    may_begin = Delivery.due_at <= now
    ready = and_(may_begin, Delivery.published_at.is_(None))
    under_way_first = case((ready, 1), else_=0)
    by_webhook = (
        select(
            Delivery.id,
            Delivery.attempts,
            Delivery.due_at,
            Webhook.tenant,
            ready.label("ready"),
            _place(Delivery.webhook_id, under_way_first, Delivery.due_at, Delivery.id).label("place"),
        )
        .join(Webhook)
        .where(or_(Delivery.state == DeliveryState.SENDING, and_(Delivery.state == DeliveryState.PENDING, may_begin)))
        .subquery()
    )
    columns = by_webhook.c
    turn = _place(columns.tenant, case((columns.ready, columns.place), else_=0), columns.due_at, columns.id)
    by_tenant = select(by_webhook, turn.label("turn")).where(or_(~columns.ready, columns.place <= _IN_FLIGHT_EACH))
    ranked = by_tenant.subquery().c
    under_way = session.scalars(select(func.count()).select_from(by_webhook).where(~columns.ready)).one()
    chosen = (
        select(ranked.id, ranked.attempts)
        .where(ranked.ready)
        .order_by(ranked.turn, ranked.due_at, ranked.id)
        .limit(max(0, _IN_FLIGHT - under_way))
    )
    return [Due(DeliveryId(row.id), row.attempts) for row in session.execute(chosen)]


def _place(among: SQLColumnExpression[str], *order: SQLColumnExpression[Any]) -> ColumnElement[int]:
    return func.row_number().over(partition_by=among, order_by=order)


def waiting(session: Session) -> int:
    """How many messages the queue should hold: published, and not claimed yet."""
    return session.scalars(select(func.count()).select_from(Delivery).where(*_unclaimed(session))).one()


def unanswered(session: Session, age: timedelta, limit: int) -> list[Due]:
    """What was published at least ``age`` ago and nobody has claimed, oldest first."""
    old = (*_unclaimed(session), Delivery.published_at <= database_now(session) - age)
    chosen = (
        select(Delivery.id, Delivery.attempts).where(*old).order_by(Delivery.published_at, Delivery.id).limit(limit)
    )
    return [Due(DeliveryId(row.id), row.attempts) for row in session.execute(chosen)]


def published(session: Session, message: Due) -> None:
    """The message is in the queue; one that was claimed in between is left alone."""
    same = (Delivery.id == message.id, Delivery.attempts == message.attempts)
    session.execute(update(Delivery).where(*same).values(published_at=database_now(session)))


def claim(session: Session, delivery_id: str, lease: timedelta, patience: Patience) -> Claim | None:
    """Takes a delivery that is due; None if it is not, or nothing is left to try."""
    now = database_now(session)
    taken = (
        update(Delivery)
        .where(
            Delivery.id == delivery_id,
            Delivery.state.in_((DeliveryState.PENDING, DeliveryState.SENDING)),
            Delivery.due_at <= now,
        )
        .values(state=DeliveryState.SENDING, attempts=Delivery.attempts + 1, due_at=now + lease, published_at=None)
        .returning(Delivery.webhook_id, Delivery.attempts, Delivery.round_began, Delivery.body)
    )
    row = session.execute(taken).one_or_none()
    if row is None:
        return None
    webhook = session.get_one(Webhook, row.webhook_id, populate_existing=True)
    tries = row.attempts - row.round_began
    over = _DISABLED if webhook.disabled_at is not None else _LOST if tries > len(patience.delays) + 1 else None
    if over is not None:
        values = {"state": DeliveryState.FAILED, "attempts": row.attempts - 1, "last_error": over}
        session.execute(update(Delivery).where(Delivery.id == delivery_id).values(**values))
        return None
    secrets = _secrets(webhook, now)
    return Claim(DeliveryId(delivery_id), WebhookId(webhook.id), row.attempts, webhook.url, secrets, row.body)


def delivered(session: Session, held: Claim, status: int) -> bool:
    """The receiver has it; False if it was not ours to tell any more."""
    webhook = locked(session, held.webhook_id)
    now = database_now(session)
    values = {"state": DeliveryState.DELIVERED, "delivered_at": now, "last_status": status, "last_error": None}
    if webhook is None or not _close(session, held, values):
        return False
    webhook.failing_since = None
    webhook.failures = 0
    return True


def missed(session: Session, held: Claim, miss: Miss, patience: Patience) -> bool:
    """The receiver does not have it, as far as we know: tried again later, or given up. False if it was not ours."""
    webhook = locked(session, held.webhook_id)
    delivery = session.get(Delivery, held.id, populate_existing=True)
    if webhook is None or delivery is None:
        return False
    now = database_now(session)
    values: dict[str, object] = {"last_status": miss.status, "last_error": miss.reason[:512]}
    tries = held.attempt - delivery.round_began
    if miss.gone or webhook.disabled_at is not None or tries > len(patience.delays):
        values |= {"state": DeliveryState.FAILED}
    else:
        delay = patience.delays[tries - 1] * random.uniform(*_JITTER)
        values |= {"state": DeliveryState.PENDING, "due_at": now + timedelta(seconds=delay)}
    if not _close(session, held, values):
        return False
    _count_failure(session, webhook, miss, now, patience)
    return True


def send_again(session: Session, delivery: Delivery) -> bool:
    """Makes a delivery due now, with its whole schedule before it; False while it is being sent."""
    now = database_now(session)
    values = {"state": DeliveryState.PENDING, "due_at": now, "published_at": None, "round_began": Delivery.attempts}
    idle = (Delivery.id == delivery.id, Delivery.state != DeliveryState.SENDING)
    changed = session.execute(update(Delivery).where(*idle).values(**values).returning(Delivery.id)).first()
    session.refresh(delivery)
    return changed is not None


def disable(session: Session, webhook: Webhook, reason: DisabledReason) -> None:
    """Tells a webhook nothing any more; the caller has locked it. What waits for it is given up."""
    webhook.disabled_at = database_now(session)
    webhook.disabled_reason = reason
    waiting = (Delivery.webhook_id == webhook.id, Delivery.state == DeliveryState.PENDING)
    given_up = {"state": DeliveryState.FAILED, "last_error": _DISABLED}
    session.execute(update(Delivery).where(*waiting).values(**given_up), execution_options=_AS_IT_IS)


def enable(webhook: Webhook) -> None:
    """From now on it is told again; the caller has locked it."""
    webhook.disabled_at = webhook.disabled_reason = webhook.failing_since = None
    webhook.failures = 0


def forget(session: Session, age: timedelta, limit: int = 1000) -> int:
    """Removes deliveries that ended longer ago than ``age``; how many.

    They are held first: what someone asks for again at this moment is left to them, and so is what another removes.
    """
    ended = Delivery.state.in_((DeliveryState.DELIVERED, DeliveryState.FAILED))
    old = select(Delivery.id).where(ended, Delivery.due_at < database_now(session) - age).limit(limit)
    held = session.scalars(old.with_for_update(skip_locked=True)).all()
    session.execute(delete(Delivery).where(Delivery.id.in_(held)), execution_options=_AS_IT_IS)
    return len(held)


def locked(session: Session, webhook_id: str) -> Webhook | None:
    """The webhook, held until the transaction ends; not against ``announce``, whose rows only refer to it."""
    return session.get(Webhook, webhook_id, with_for_update={"key_share": True}, populate_existing=True)


_AS_IT_IS = {"synchronize_session": False}


def _count_failure(session: Session, webhook: Webhook, miss: Miss, now: datetime, patience: Patience) -> None:
    webhook.failures += 1
    webhook.failing_since = webhook.failing_since or now
    if webhook.disabled_at is not None:
        return
    if miss.gone:
        disable(session, webhook, DisabledReason.GONE)
    elif webhook.failures >= _MANY_FAILURES and now - webhook.failing_since >= patience.most_failing:
        disable(session, webhook, DisabledReason.FAILING)


def _unclaimed(session: Session) -> tuple[ColumnElement[bool], ...]:
    open_states = (DeliveryState.PENDING, DeliveryState.SENDING)
    due_at = Delivery.due_at <= database_now(session)
    return Delivery.state.in_(open_states), due_at, Delivery.published_at.is_not(None)


def _close(session: Session, held: Claim, values: Mapping[str, object]) -> bool:
    fence = (Delivery.id == held.id, Delivery.attempts == held.attempt, Delivery.state == DeliveryState.SENDING)
    closed = update(Delivery).where(*fence).values(**values).returning(Delivery.id)
    return session.execute(closed).first() is not None


def _secrets(webhook: Webhook, now: datetime) -> tuple[str, ...]:
    if webhook.previous_secret is None or webhook.previous_until is None or webhook.previous_until <= now:
        return (webhook.secret,)
    return webhook.secret, webhook.previous_secret


def _new(webhook_id: str, event: str, body: str, now: datetime, fusion_id: str | None = None) -> Delivery:
    return Delivery(
        id=new_delivery_id(),
        webhook_id=webhook_id,
        fusion_id=fusion_id,
        type=event,
        body=body,
        state=DeliveryState.PENDING,
        attempts=0,
        round_began=0,
        due_at=now,
        created_at=now,
    )


def _facts(session: Session, fusion_id: str) -> dict[str, Any]:
    columns = (Fusion.state, Fusion.attempt, Fusion.created_at, Fusion.started_at, Fusion.finished_at, Fusion.error)
    fusion = session.execute(select(*columns).where(Fusion.id == fusion_id)).one()
    return {
        "id": fusion_id,
        "state": fusion.state.value,
        "attempt": fusion.attempt,
        "error": None if fusion.error is None else fusion.error["code"],
        "created_at": _written(fusion.created_at),
        "started_at": _written(fusion.started_at),
        "finished_at": _written(fusion.finished_at),
    }


def _document(event: str, now: datetime, data: Mapping[str, Any]) -> str:
    return json.dumps({"type": event, "timestamp": _written(now), "data": data}, separators=(",", ":"))


def _written(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
