"""Who may call the service, how much of it each may use, and which of their calls were answered before."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.store.models.base import Base, utc_now


class Account(Base):
    """One caller: an API key, or a subject of an identity provider. Its row is the lock under which quotas are counted."""

    __tablename__ = "accounts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)  # key_…, oidc:…, or local
    tenant: Mapped[str] = mapped_column(String(64), index=True)
    name: Mapped[str] = mapped_column(String(128))
    secret_hash: Mapped[str | None] = mapped_column(String(64), unique=True)  # of a key; others bring tokens
    scopes: Mapped[list[str]]
    quota_bytes: Mapped[int | None] = mapped_column(BigInteger)  # stored; none: what the settings say
    quota_jobs: Mapped[int | None] = mapped_column(Integer)  # fusions kept
    quota_concurrent: Mapped[int | None] = mapped_column(Integer)  # fusions that have not ended
    requests_per_second: Mapped[float | None] = mapped_column(Float)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class IdempotentCall(Base):
    """A call that was answered under an Idempotency-Key; the same call gets the same answer again."""

    __tablename__ = "idempotent_calls"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    call: Mapped[str] = mapped_column(String(255))  # method and path
    body_sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(Integer)
    headers: Mapped[dict[str, Any]]
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
