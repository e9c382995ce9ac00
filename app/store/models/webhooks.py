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
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    disabled_at: Mapped[datetime | None]


class Delivery(Base):
    """One message to one webhook; written in the transaction of the event that it tells of."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("ix_deliveries_state_due_at", "state", "due_at"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)  # msg_…, the same at every try
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id"), index=True)
    fusion_id: Mapped[str] = mapped_column(String(40), index=True)
    type: Mapped[str] = mapped_column(String(64))
    body: Mapped[str] = mapped_column(Text)  # the very bytes that are signed and sent
    state: Mapped[str] = mapped_column(String(16))  # pending | delivered | failed
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    due_at: Mapped[datetime]  # when the next try may begin
    last_status: Mapped[int | None] = mapped_column(Integer)  # of the answer; its body is never kept
    last_error: Mapped[str | None] = mapped_column(String(512))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    delivered_at: Mapped[datetime | None]
