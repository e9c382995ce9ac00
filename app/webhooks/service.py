"""Rules about webhooks: which addresses and events are accepted, and when something is sent again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

from sqlalchemy.orm import Session

from app.errors import summary
from app.peers import Peers
from app.settings import Settings
from app.signing import new_secret
from app.store import deliveries
from app.store.clock import database_now
from app.store.deliveries import DisabledReason
from app.store.ids import new_webhook_id
from app.store.models import Delivery, Webhook
from app.store.ownership import Owner
from app.webhooks import repository
from app.webhooks.checking import event_problems, parsed, secret_problems, url_problems
from app.webhooks.errors import (
    DeliveryNotFound,
    DeliveryUnderWay,
    TooManyPings,
    TooManyWebhooks,
    WebhookDisabled,
    WebhookNotFound,
    WebhookRefused,
)
from app.webhooks.schemas import WebhookChange, WebhookIn
from cogram_core.errors import Problem

_MOST_PINGS = 20  # of a webhook at once: nothing else bounds what one caller could have waiting for the dispatcher


def create(session: Session, owner: Owner, wanted: WebhookIn, settings: Settings) -> Webhook:
    """A new webhook, enabled.

    Raises:
        WebhookRefused: listing every problem.
        TooManyWebhooks: when the tenant has as many as it may have.
    """
    secret = new_secret() if wanted.secret is None else wanted.secret
    _refuse([*url_problems(wanted.url, _peers(settings)), *event_problems(wanted.events), *secret_problems(secret)])
    if repository.count_alone(session, owner.tenant) >= settings.webhooks_per_tenant:
        raise TooManyWebhooks(f"There are {settings.webhooks_per_tenant} already; delete one that is not needed.")
    webhook = Webhook(
        id=new_webhook_id(),
        tenant=owner.tenant,
        owner=owner.account,
        url=str(parsed(wanted.url)),
        secret=secret,
        events=wanted.events,
        failures=0,
    )
    session.add(webhook)
    session.flush()
    return webhook


def get(session: Session, tenant: str, webhook_id: str) -> Webhook:
    """Raises WebhookNotFound without one."""
    return _existing(repository.get(session, tenant, webhook_id), webhook_id)


def page(session: Session, tenant: str, before: str | None, limit: int) -> Sequence[Webhook]:
    """Newest first."""
    return repository.page(session, tenant, before, limit)


def change(session: Session, tenant: str, webhook_id: str, wanted: WebhookChange, settings: Settings) -> Webhook:
    """Another address, other events; enabled or disabled.

    Raises:
        WebhookRefused: listing every problem.
    """
    webhook = _locked(session, tenant, webhook_id)
    url_faults = () if wanted.url is None else url_problems(wanted.url, _peers(settings))
    event_faults = () if wanted.events is None else event_problems(wanted.events)
    _refuse([*url_faults, *event_faults])
    if wanted.url is not None:
        webhook.url = str(parsed(wanted.url))
    if wanted.events is not None:
        webhook.events = wanted.events
    if wanted.enabled is True and webhook.disabled_at is not None:
        deliveries.enable(webhook)
    if wanted.enabled is False and webhook.disabled_at is None:
        deliveries.disable(session, webhook, DisabledReason.ASKED)
    return webhook


def change_secret(session: Session, tenant: str, webhook_id: str, secret: str | None, overlap: timedelta) -> Webhook:
    """A new secret; the one before signs as well for the ``overlap``, so that no receiver misses a message.

    Raises:
        WebhookRefused: when the secret can't be used.
    """
    webhook = _locked(session, tenant, webhook_id)
    chosen = new_secret() if secret is None else secret
    _refuse([*secret_problems(chosen)])
    webhook.previous_secret, webhook.secret = webhook.secret, chosen
    webhook.previous_until = database_now(session) + overlap
    return webhook


def delete(session: Session, tenant: str, webhook_id: str) -> None:
    """Removes a webhook and its deliveries; what is being sent at this moment may still arrive."""
    repository.delete_all_of(session, _locked(session, tenant, webhook_id))


def delivery_page(session: Session, tenant: str, webhook_id: str, before: str | None, limit: int) -> Sequence[Delivery]:
    """Newest first."""
    return repository.deliveries(session, get(session, tenant, webhook_id), before, limit)


def redeliver(session: Session, tenant: str, webhook_id: str, delivery_id: str) -> Delivery:
    """Makes a delivery due now, whatever became of it before.

    Raises:
        WebhookDisabled: when nothing is sent to it.
        DeliveryUnderWay: while it is being sent.
    """
    webhook = _enabled(session, tenant, webhook_id)
    delivery = repository.delivery(session, webhook, delivery_id)
    if delivery is None:
        raise DeliveryNotFound(
            f"The webhook has no delivery {delivery_id!r}. GET /v1/webhooks/{webhook_id}/deliveries lists them."
        )
    if not deliveries.send_again(session, delivery):
        raise DeliveryUnderWay("It is being sent at this moment; look at it again soon.")
    return delivery


def ping(session: Session, tenant: str, webhook_id: str) -> Delivery:
    """A message that tells of nothing but that the address is right.

    Raises:
        WebhookDisabled: when nothing is sent to it.
        TooManyPings: while too many of them wait.
    """
    webhook = _enabled(session, tenant, webhook_id)
    if deliveries.waiting_pings(session, webhook) >= _MOST_PINGS:
        raise TooManyPings(
            f"{_MOST_PINGS} pings to it have neither arrived nor been given up; their deliveries tell why. Wait for one.",
            headers={"Retry-After": "60"},
        )
    return deliveries.ping(session, webhook)


def _enabled(session: Session, tenant: str, webhook_id: str) -> Webhook:
    webhook = _locked(session, tenant, webhook_id)
    if webhook.disabled_at is not None:
        raise WebhookDisabled('The webhook is disabled. PATCH it with {"enabled": true} first.')
    return webhook


def _locked(session: Session, tenant: str, webhook_id: str) -> Webhook:
    return _existing(repository.get_locked(session, tenant, webhook_id), webhook_id)


def _existing(found: Webhook | None, webhook_id: str) -> Webhook:
    if found is None:
        raise WebhookNotFound(f"There is no webhook {webhook_id!r}. GET /v1/webhooks lists them.")
    return found


def _peers(settings: Settings) -> Peers:
    return Peers(allow_private=settings.webhook_allow_private, refused=settings.webhook_refused_networks)


def _refuse(problems: Iterable[Problem]) -> None:
    found = [*problems]
    if found:
        raise WebhookRefused(summary(found), errors=found)
