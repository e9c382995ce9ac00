"""What can be wrong with a request about webhooks."""

from __future__ import annotations

from app.errors import Conflict, NotFound, TooManyRequests, Unprocessable


class WebhookNotFound(NotFound):
    """No webhook has this id."""

    code, title = "webhook.not_found", "No such webhook"


class DeliveryNotFound(NotFound):
    """The webhook has no such delivery."""

    code, title = "delivery.not_found", "No such delivery"


class WebhookRefused(Unprocessable):
    """The webhook can't be made or changed so; lists every reason."""

    code, title = "webhook.invalid", "Invalid webhook"


class TooManyWebhooks(Conflict):
    """The tenant has as many as it may have."""

    code, title = "webhook.too_many", "Too many webhooks"


class WebhookDisabled(Conflict):
    """Nothing is sent to it."""

    code, title = "webhook.disabled", "Webhook disabled"


class TooManyPings(TooManyRequests):
    """So many that were asked for before have not ended."""

    code, title = "delivery.too_many", "Too many pings at once"


class DeliveryUnderWay(Conflict):
    """It is being sent at this moment."""

    code, title = "delivery.under_way", "Delivery under way"
