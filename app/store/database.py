"""Engine and transactions, the same on SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.orm import Session, sessionmaker

_BUSY_SECONDS = 30


class Database:
    """One engine and two ways to a session: ``transaction`` writes, ``reading`` only looks.

    With ``patience``, in seconds and at least 2, each step (to connect, to wait for a lock, a statement) fails once it
    has taken that long; else what runs into an outage of PostgreSQL may wait for minutes.
    """

    def __init__(self, url: str, patience: int | None = None) -> None:
        self.url = url
        self.engine = _engine(url, patience)
        self._writers = sessionmaker(self.engine, expire_on_commit=False)
        self._readers = sessionmaker(self.engine.execution_options(cogram_reading=True), expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end of the block and rolls back on any exception."""
        with self._writers.begin() as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for selects; on SQLite it never waits for a writer."""
        with self._readers.begin() as session:
            yield session

    def dispose(self) -> None:
        """Closes every pooled connection; a forked child calls it first, so that it never shares the parent's."""
        self.engine.dispose(close=False)

    def close(self) -> None:
        """Closes every pooled connection for good."""
        self.engine.dispose()


def _engine(url: str, patience: int | None) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return _postgresql(parsed) if patience is None else _hurried_postgresql(parsed, patience)
    return _sqlite(parsed, patience or _BUSY_SECONDS)


def _postgresql(url: URL, **limits: int) -> Engine:
    return create_engine(url, pool_pre_ping=True, connect_args=limits)


def _hurried_postgresql(url: URL, patience: int) -> Engine:
    milliseconds = patience * 1000
    engine = _postgresql(
        url,
        connect_timeout=patience,
        tcp_user_timeout=milliseconds,  # of a server that no longer takes what was sent
        keepalives_idle=patience,  # of one that is cut off before it answers
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # For the transaction alone: a pooler in between may give the connection to others.
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {milliseconds}")

    return engine


def _sqlite(url: URL, busy_seconds: int) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": busy_seconds})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # BEGIN is sent below, not guessed by the driver
        cursor = connection.cursor()
        _write_ahead(cursor, busy_seconds)
        cursor.execute("PRAGMA synchronous=FULL")  # an accepted job survives a power cut, too
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA busy_timeout={busy_seconds * 1000}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A deferred transaction that reads first and writes later fails at once when another wrote in between.
        reading = connection.get_execution_options().get("cogram_reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(cursor: Any, busy_seconds: int) -> None:
    """Turns the write-ahead log on. The switch itself never waits for another connection, so the waiting is done here."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
