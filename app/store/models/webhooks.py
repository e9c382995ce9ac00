"""Webhooks, and every delivery that was or will be tried."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.store.models.base import Base, Owned, utc_now


class Webhook(Owned, Base):
    """An address that is told of events of its tenant's fusions."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("ix_webhooks_tenant_id", "tenant", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    url: Mapped[str] = mapped_column(String(2048))
    secret: Mapped[str] = mapped_column(String(128))  # whsec_…; it signs, so it can't be kept as a hash
    events: Mapped[list[str]]  # types, such as fusion.succeeded
    previous_secret: Mapped[str | None] = mapped_column(String(128))  # signs as well, for a while after a change
    previous_until: Mapped[datetime | None]
    failing_since: Mapped[datetime | None]  # the first failure after the last success
    failures: Mapped[int] = mapped_column(Integer, default=0)  # in a row, of all its deliveries
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None] = mapped_column(String(16))  # asked | gone | failing


class Delivery(Base):
    """One message to one webhook; written in the transaction of the event that it tells of.

    ``attempts`` is the fencing token of whoever is sending it.
    """

    __tablename__ = "deliveries"
    __table_args__ = (
        Index("ix_deliveries_state_due_at", "state", "due_at"),
        Index("ix_deliveries_webhook_id_id", "webhook_id", "id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)  # msg_…, the same at every try
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"))
    fusion_id: Mapped[str | None] = mapped_column(String(40), index=True)  # none for a ping
    type: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)  # the very bytes that are signed and sent
    state: Mapped[str] = mapped_column(String(16))  # pending | sending | delivered | failed
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    round_began: Mapped[int] = mapped_column(Integer, default=0)  # attempts there were when the schedule began (again)
    due_at: Mapped[datetime]  # when the next try may begin; while one is under way, when it counts as lost
    published_at: Mapped[datetime | None]  # when the next try's message went to the queue
    last_status: Mapped[int | None] = mapped_column(Integer)  # of the answer; its body is never kept
    last_error: Mapped[str | None] = mapped_column(String(512))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    delivered_at: Mapped[datetime | None]
