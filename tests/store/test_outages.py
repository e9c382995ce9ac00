"""What passes is told from what doesn't, on both databases."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from app.store.database import Database
from app.store.outages import Outage, outage_in
from tests.services import PostgreSQL


def _error(database: Database, *statements: str) -> DBAPIError:
    """Of the last of the statements, all in one transaction."""
    try:
        with database.transaction() as session:
            for statement in statements:
                session.execute(text(statement))
    except DBAPIError as error:
        return error
    raise AssertionError(f"nothing is wrong with {statements}")


def test_a_statement_that_is_refused_for_ever_is_no_outage(database: Database) -> None:
    for statement in ("SELECT nothing FROM nowhere", "INSERT INTO events (id) VALUES (1)", "SELEC"):
        assert outage_in(_error(database, statement)) is None
    assert outage_in(ValueError("no")) is None
    assert outage_in(FileNotFoundError(errno.ENOENT, "no")) is None


def test_a_database_file_that_may_grow_no_more_is_a_full_disk(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    filling = "CREATE TABLE filling AS SELECT zeroblob(500000) AS content"
    assert outage_in(_error(database, "PRAGMA max_page_count = 1", filling)) is Outage.FULL
    database.close()


def test_a_disk_without_room_is_full() -> None:
    with pytest.raises(OSError, match="No space") as raised, Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")
    assert outage_in(raised.value) is Outage.FULL


def test_a_server_that_went_away_is_out_of_reach(postgresql_server: PostgreSQL, postgresql_url: str) -> None:
    database = Database(postgresql_url)
    with database.reading() as session:
        session.execute(text("SELECT 1"))
    with postgresql_server.out_of_reach(postgresql_url):
        assert outage_in(_error(database, "SELECT 1")) is Outage.AWAY
    database.close()


def test_a_database_that_another_holds_is_busy(sqlite_url: str) -> None:
    holder, waiter = Database(sqlite_url), Database(sqlite_url)
    event.listen(waiter.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 1"))
    with holder.transaction() as session:
        session.execute(text("SELECT 1"))
        assert outage_in(_error(waiter, "SELECT 1")) is Outage.AWAY
    holder.close()
    waiter.close()
