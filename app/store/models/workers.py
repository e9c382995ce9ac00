"""Who is there to run jobs."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.store.models.base import Base


class WorkerSign(Base):
    """The last sign of life of one worker process, and the queues from which it takes jobs."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    queues: Mapped[list[str]]
    seen_at: Mapped[datetime]
