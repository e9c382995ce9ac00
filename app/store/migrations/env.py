"""Runs migrations on the connection that ``app.store.migrate`` hands over; there is no other way in."""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from app.store.models import Base, StateName, UtcDateTime


def _render(kind: str, item: Any, _autogenerate: Any) -> str | Literal[False]:
    """Migrations name only SQLAlchemy's own types, so that an old one runs unchanged when the models move on."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, StateName):
        return "sa.String(length=16)"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
    transactional_ddl=True,
    render_item=_render,
)
with context.begin_transaction():
    context.run_migrations()
