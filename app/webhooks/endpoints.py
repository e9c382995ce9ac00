"""Webhooks over HTTP."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Response

from app.auth import Subscriber
from app.context import Ctx
from app.errors import declared
from app.paging import Limit, PageToken, decode_id, encode_token
from app.store.deliveries import DeliveryState, DisabledReason, WebhookEvent
from app.store.models import Delivery, Webhook
from app.webhooks import service
from app.webhooks.schemas import (
    DeliveryOut,
    DeliveryPage,
    SecretChange,
    WebhookChange,
    WebhookIn,
    WebhookOut,
    WebhookPage,
    WebhookWithSecret,
)

router = APIRouter(prefix="/webhooks", tags=["webhooks"])


@router.post("", status_code=201, responses=declared(400, 409, 413))
def create_webhook(wanted: WebhookIn, response: Response, caller: Subscriber, ctx: Ctx) -> WebhookWithSecret:
    """Have an address told of events of this tenant's fusions. The secret is shown this once."""
    with ctx.database.transaction() as session:
        webhook = service.create(session, caller.owner, wanted, ctx.settings)
    response.headers["Location"] = f"/v1/webhooks/{webhook.id}"
    return WebhookWithSecret(**_fields(webhook), secret=webhook.secret)


@router.get("", responses=declared())
def list_webhooks(caller: Subscriber, ctx: Ctx, limit: Limit = 50, page_token: PageToken = None) -> WebhookPage:
    """Webhooks, newest first."""
    with ctx.database.reading() as session:
        found = service.page(session, caller.tenant, decode_id(page_token), limit)
    following = encode_token(found[-1].id) if len(found) == limit else None
    return WebhookPage(items=[_out(webhook) for webhook in found], next_page_token=following)


@router.get("/{webhook_id}", responses=declared(404))
def get_webhook(webhook_id: str, caller: Subscriber, ctx: Ctx) -> WebhookOut:
    """One webhook, without its secret."""
    with ctx.database.reading() as session:
        return _out(service.get(session, caller.tenant, webhook_id))


@router.patch("/{webhook_id}", responses=declared(400, 404, 413))
def change_webhook(webhook_id: str, wanted: WebhookChange, caller: Subscriber, ctx: Ctx) -> WebhookOut:
    """Change the address or the events, disable it, or enable it again."""
    with ctx.database.transaction() as session:
        return _out(service.change(session, caller.tenant, webhook_id, wanted, ctx.settings))


@router.delete("/{webhook_id}", status_code=204, responses=declared(404))
def delete_webhook(webhook_id: str, caller: Subscriber, ctx: Ctx) -> None:
    """Remove a webhook and its deliveries."""
    with ctx.database.transaction() as session:
        service.delete(session, caller.tenant, webhook_id)


@router.post("/{webhook_id}/secret", responses=declared(400, 404, 413))
def change_webhook_secret(
    webhook_id: str, caller: Subscriber, ctx: Ctx, wanted: SecretChange | None = None
) -> WebhookWithSecret:
    """Give a webhook a new secret, shown this once. For a day, messages carry a signature of the one before, too."""
    overlap = timedelta(seconds=ctx.settings.webhook_secret_overlap_seconds)
    with ctx.database.transaction() as session:
        secret = None if wanted is None else wanted.secret
        webhook = service.change_secret(session, caller.tenant, webhook_id, secret, overlap)
    return WebhookWithSecret(**_fields(webhook), secret=webhook.secret)


@router.post("/{webhook_id}/test", status_code=202, responses=declared(404, 409))
def ping_webhook(webhook_id: str, caller: Subscriber, ctx: Ctx) -> DeliveryOut:
    """Send a ``webhook.ping``; its delivery tells what became of it."""
    with ctx.database.transaction() as session:
        return _delivery_out(service.ping(session, caller.tenant, webhook_id))


@router.get("/{webhook_id}/deliveries", responses=declared(404))
def list_deliveries(
    webhook_id: str, caller: Subscriber, ctx: Ctx, limit: Limit = 50, page_token: PageToken = None
) -> DeliveryPage:
    """What was and will be sent to a webhook, newest first."""
    with ctx.database.reading() as session:
        found = service.delivery_page(session, caller.tenant, webhook_id, decode_id(page_token), limit)
    following = encode_token(found[-1].id) if len(found) == limit else None
    return DeliveryPage(items=[_delivery_out(delivery) for delivery in found], next_page_token=following)


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=202, responses=declared(404, 409))
def redeliver(webhook_id: str, delivery_id: str, caller: Subscriber, ctx: Ctx) -> DeliveryOut:
    """Send a message again, with the same id, now; if need be on the whole schedule again."""
    with ctx.database.transaction() as session:
        return _delivery_out(service.redeliver(session, caller.tenant, webhook_id, delivery_id))


def _out(webhook: Webhook) -> WebhookOut:
    return WebhookOut(**_fields(webhook))


def _fields(webhook: Webhook) -> dict[str, Any]:
    reason = webhook.disabled_reason
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": [WebhookEvent(event) for event in webhook.events],
        "enabled": webhook.disabled_at is None,
        "disabled_reason": None if reason is None else DisabledReason(reason),
        "disabled_at": webhook.disabled_at,
        "failing_since": webhook.failing_since,
        "created_at": webhook.created_at,
    }


def _delivery_out(delivery: Delivery) -> DeliveryOut:
    return DeliveryOut(
        id=delivery.id,
        type=delivery.type,
        fusion_id=delivery.fusion_id,
        state=DeliveryState(delivery.state),
        attempts=delivery.attempts,
        next_attempt_at=delivery.due_at if delivery.state == DeliveryState.PENDING else None,
        last_status=delivery.last_status,
        last_error=delivery.last_error,
        created_at=delivery.created_at,
        delivered_at=delivery.delivered_at,
    )
