"""One clock for every lease: the database's, so that hosts whose clocks differ still agree on what has run out."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.store.models import UtcDateTime, utc_now


def database_now(session: Session) -> datetime:
    """PostgreSQL's present; SQLite has one host, so its clock is ours."""
    if session.get_bind().dialect.name == "postgresql":
        present: datetime = session.scalars(select(func.clock_timestamp(type_=UtcDateTime()))).one()
        return present
    return utc_now()
