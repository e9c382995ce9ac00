"""What every table is built on: types that are the same on both databases, names for constraints, an owner's columns."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Integer, MetaData, String, TypeDecorator
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.store.states import FusionState


def utc_now() -> datetime:
    """The present, with its zone."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets zones, so they are taken off on the way in and put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Zone-less UTC for SQLite, untouched elsewhere."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Always with a zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class StateName(TypeDecorator[FusionState]):
    """A fusion's state: a string in the table, a ``FusionState`` in Python."""

    impl = String(16)
    cache_ok = True

    def process_bind_param(self, value: FusionState | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Its plain name."""
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> FusionState | None:  # noqa: ARG002
        """The member; an unknown name is an error."""
        return None if value is None else FusionState(value)


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can drop it again."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime(),
        FusionState: StateName(),
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(),
        list[int]: JSON(),
    }


# SQLite gives rising row ids only to a column of type INTEGER.
RowId = BigInteger().with_variant(Integer(), "sqlite")


class Owned:
    """Whose a row is: no other tenant sees it, and it counts towards the quotas of the account that made it."""

    tenant: Mapped[str] = mapped_column(String(64))
    owner: Mapped[str] = mapped_column(String(64))  # an account: key_…, oidc:…, or local
