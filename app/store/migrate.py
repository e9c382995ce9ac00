"""Brings a database to the newest schema, from any directory and from several processes at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, text

from app.store.database import Database

_LOCK = 7_264_772_001  # any number, as long as every process takes the same


def migrate(url: str) -> None:
    """Upgrades to the newest schema, in one transaction that waits for whoever else migrates the same database."""
    with _exclusively(url) as config:
        command.upgrade(config, "head")


def downgrade(url: str, revision: str) -> None:
    """Goes back to ``revision``; ``base`` is before the first."""
    with _exclusively(url) as config:
        command.downgrade(config, revision)


@contextmanager
def _exclusively(url: str) -> Iterator[Config]:
    database = Database(url)
    if database.engine.dialect.name == "sqlite":
        # SQLite changes a table by copying it to a new one, and would not drop the old one while others refer to it.
        event.listen(database.engine, "connect", _without_foreign_keys)
    try:
        with database.engine.begin() as connection:
            _wait_for_others(connection)
            yield _config(connection)
            _check_foreign_keys(connection)
    finally:
        database.close()


def _without_foreign_keys(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA foreign_keys=OFF")


def _check_foreign_keys(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        broken = connection.execute(text("PRAGMA foreign_key_check")).all()
        assert not broken, broken  # rolls the migration back


def _wait_for_others(connection: Connection) -> None:
    # SQLite's transactions begin with its only write lock.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config
