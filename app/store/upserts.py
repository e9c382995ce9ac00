"""INSERT … ON CONFLICT, which SQLAlchemy has in each database's own dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from app.store.models import Base

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql, sqlite


def insert(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """An insert into the table that may say what happens on a conflict."""
    # The dialect in use is loaded by now. PostgreSQL's takes its time, which a start over SQLite needn't spend.
    if session.get_bind().dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)
