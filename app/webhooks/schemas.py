"""Webhooks as callers see them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictBool, WithJsonSchema

from app.store.deliveries import DeliveryState, DisabledReason, WebhookEvent

# Plain strings, so that one answer can list everything that is wrong; the contract says what is right.
_Url = Annotated[
    str,
    Field(max_length=8192),
    WithJsonSchema({"type": "string", "format": "uri", "maxLength": 2048, "description": "public, with https"}),
]
_Events = Annotated[
    list[str],
    Field(max_length=64),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string", "enum": [event.value for event in WebhookEvent]},
            "minItems": 1,
            "uniqueItems": True,
            "description": "what to be told of",
        }
    ),
]
_Secret = Annotated[
    str,
    Field(max_length=128),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": "^whsec_[A-Za-z0-9+/]{32,86}={0,2}$",
            "description": "whsec_ and 24 to 64 random bytes in base64; a new one is made where it is left out",
        }
    ),
]


class WebhookIn(BaseModel):
    """Tell an address of events of this tenant's fusions."""

    model_config = ConfigDict(extra="forbid")

    url: _Url
    events: _Events
    secret: _Secret | None = None


class WebhookChange(BaseModel):
    """What is to be changed; what is left out or null stays as it is."""

    model_config = ConfigDict(extra="forbid")

    url: _Url | None = None
    events: _Events | None = None
    enabled: StrictBool | None = Field(None, description="false: nothing is sent any more, and what waits is given up")


class SecretChange(BaseModel):
    """A new secret for a webhook."""

    model_config = ConfigDict(extra="forbid")

    secret: _Secret | None = None


class WebhookOut(BaseModel):
    """An address that is told of events."""

    id: str
    url: str
    events: list[WebhookEvent]
    enabled: bool
    disabled_reason: DisabledReason | None = Field(description="gone: it answered 410; failing: for days")
    disabled_at: AwareDatetime | None
    failing_since: AwareDatetime | None = Field(description="the first failure after the last success")
    created_at: AwareDatetime


class WebhookWithSecret(WebhookOut):
    """The same with its secret, which is shown this once."""

    secret: str


class WebhookPage(BaseModel):
    """Some of the webhooks, newest first."""

    items: list[WebhookOut]
    next_page_token: str | None


class DeliveryOut(BaseModel):
    """One message and what became of it."""

    id: str = Field(description="the webhook-id header, the same at every try")
    type: str
    fusion_id: str | None = Field(description="null for a ping")
    state: DeliveryState
    attempts: int
    next_attempt_at: AwareDatetime | None = Field(description="at the earliest; null if there is none")
    last_status: int | None = Field(description="of the last answer, if one came; its body is never kept")
    last_error: str | None
    created_at: AwareDatetime
    delivered_at: AwareDatetime | None


class DeliveryPage(BaseModel):
    """Some of the deliveries, newest first."""

    items: list[DeliveryOut]
    next_page_token: str | None
