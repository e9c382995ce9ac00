"""Fusions, and all that belongs to one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.store.models.base import Base, Owned, RowId, utc_now
from app.store.states import FusionState


class Fusion(Owned, Base):
    """One fusion job. ``attempt`` is the fencing token of the worker that holds the lease."""

    __tablename__ = "fusions"
    __table_args__ = (
        Index("ix_fusions_state_lease", "state", "lease_until"),
        Index("ix_fusions_tenant_id", "tenant", "id"),
        Index("ix_fusions_owner_state", "owner", "state"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    state: Mapped[FusionState] = mapped_column(default=FusionState.QUEUED)
    recipe: Mapped[dict[str, Any]]  # as posted, defaults filled in, references resolved to ids
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    losses: Mapped[int] = mapped_column(Integer, default=0)  # attempts whose worker fell silent; not graceful stops
    worker: Mapped[str | None] = mapped_column(String(255))
    lease_until: Mapped[datetime | None]
    progress: Mapped[dict[str, Any] | None]
    verdict: Mapped[dict[str, Any] | None]
    retry_of: Mapped[str | None] = mapped_column(String(40))  # the fusion whose recipe this one runs again
    request_id: Mapped[str | None] = mapped_column(String(128))  # of the request that posted it
    traceparent: Mapped[str | None] = mapped_column(String(64))  # W3C trace context of that request
    error: Mapped[dict[str, Any] | None]  # {"code", "detail", "errors": [{"location", "code", "message"}]}
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]  # of the first attempt
    finished_at: Mapped[datetime | None]
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now)
    artifacts: Mapped[list[Artifact]] = relationship(order_by="Artifact.path")  # asked for only where they are shown


class FusionInput(Base):
    """A checkpoint or dataset that a fusion uses: what may not be deleted while the fusion is there."""

    __tablename__ = "fusion_inputs"

    fusion_id: Mapped[str] = mapped_column(ForeignKey("fusions.id"), primary_key=True)
    reference: Mapped[str] = mapped_column(String(40), primary_key=True)  # ckpt_… or data_…


class Artifact(Base):
    """A file that a fusion produced."""

    __tablename__ = "artifacts"

    fusion_id: Mapped[str] = mapped_column(ForeignKey("fusions.id"), primary_key=True)
    path: Mapped[str] = mapped_column(String(512), primary_key=True)
    digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    size: Mapped[int] = mapped_column(BigInteger)


class Event(Base):
    """One thing that happened to a fusion, in order; what the event stream reads."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_fusion_id_id", "fusion_id", "id"),)

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    fusion_id: Mapped[str] = mapped_column(ForeignKey("fusions.id"))
    attempt: Mapped[int] = mapped_column(Integer)
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class OutboxMessage(Base):
    """A job id to publish, written in the transaction that made the job claimable, gone once it is not."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    fusion_id: Mapped[str] = mapped_column(ForeignKey("fusions.id"), index=True)
    queue: Mapped[str] = mapped_column(String(32))
    published_at: Mapped[datetime | None] = mapped_column(index=True)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
