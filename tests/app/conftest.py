"""A real server over real sockets for every test of the HTTP side, on each kind of database.

One server a kind serves all tests; before each test everything that it stores is removed.
"""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from app.context import Context
from app.listening import listen
from app.serving import make_server
from app.settings import Settings
from app.store.migrate import migrate
from app.store.models import Base
from tests import services
from tests.app.access import Guarded
from tests.app.factories import Service


@contextmanager
def running(settings: Settings, port: int = 0, host: str = "127.0.0.1") -> Iterator[Service]:
    """The API in a thread of this process, on a free port if none is given."""
    server = make_server(settings)
    listener = listen(host, port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it began"
        time.sleep(0.005)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    context = server.config.app.state.context  # type: ignore[union-attr]
    assert isinstance(context, Context)
    try:
        with httpx.Client(base_url=address, timeout=20) as http:
            yield Service(http, context)
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


def small(folder: Path, database_url: str, broker_url: str) -> Settings:
    """Settings with small limits, so that tests reach them."""
    return Settings(
        data_dir=folder / "data",
        database_url=database_url,
        broker_url=broker_url,
        poll_seconds=0.02,
        heartbeat_comment_seconds=0.3,
        max_upload_bytes=4 * 2**20,
        min_free_bytes=0,
    )


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    """One short line each; the service's own way would replace pytest's handlers."""
    structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


@pytest.fixture(scope="session")
def sqlite_server(broker_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service on SQLite."""
    folder = tmp_path_factory.mktemp("sqlite-service")
    url = f"sqlite:///{folder / 'cogram.sqlite3'}"
    migrate(url)
    with running(small(folder, url, broker_server)) as started:
        yield started


@pytest.fixture(scope="session")
def postgresql_service_server(
    postgresql_server: services.PostgreSQL, broker_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The service on PostgreSQL."""
    folder = tmp_path_factory.mktemp("postgresql-service")
    with postgresql_server.database() as url, running(small(folder, url, broker_server)) as started:
        yield started


def guarded_by_keys(settings: Settings, **changes: Any) -> Settings:
    """The same with keys required; what is remembered of them is soon forgotten."""
    update = {"require_keys": True, "key_cache_seconds": 0.2, "requests_per_second": 1000.0}
    return settings.model_copy(update={**update, "auth_failures_per_minute": 10_000, **changes})


@pytest.fixture(scope="session")
def guarded_sqlite_server(broker_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service on SQLite, for callers with keys."""
    folder = tmp_path_factory.mktemp("guarded-sqlite-service")
    url = f"sqlite:///{folder / 'cogram.sqlite3'}"
    migrate(url)
    with running(guarded_by_keys(small(folder, url, broker_server))) as started:
        yield started


@pytest.fixture(scope="session")
def guarded_postgresql_server(
    postgresql_server: services.PostgreSQL, broker_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """The service on PostgreSQL, for callers with keys."""
    folder = tmp_path_factory.mktemp("guarded-postgresql-service")
    with postgresql_server.database() as url, running(guarded_by_keys(small(folder, url, broker_server))) as started:
        yield started


@pytest.fixture(params=["guarded_sqlite_server", "guarded_postgresql_server"], ids=["sqlite", "postgresql"])
def guarded(request: pytest.FixtureRequest) -> Guarded:
    """The empty service, for callers with keys."""
    return Guarded(_emptied(request.getfixturevalue(request.param)))


@pytest.fixture
def sqlite_service(sqlite_server: Service) -> Service:
    """The empty service on SQLite alone, for tests that never come to a database."""
    return _emptied(sqlite_server)


@pytest.fixture(params=["sqlite_server", "postgresql_service_server"], ids=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest) -> Service:
    """The empty service."""
    return _emptied(request.getfixturevalue(request.param))


@pytest.fixture
def http(service: Service) -> httpx.Client:
    """A client of the empty service."""
    return service.http


@pytest.fixture
def settings(database_url: str, broker_server: str, tmp_path: Path) -> Settings:
    """For tests that start and stop a service of their own."""
    return small(tmp_path, database_url, broker_server)


@pytest.fixture
def sqlite_settings(sqlite_url: str, broker_server: str, tmp_path: Path) -> Settings:
    """The same on SQLite alone, for tests that never come to a database."""
    return small(tmp_path, sqlite_url, broker_server)


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with listen("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def raw(http: httpx.Client) -> Iterator[socket.socket]:
    """A plain connection to the service, for requests that no client library would send."""
    with socket.create_connection((http.base_url.host, http.base_url.port or 80), 10) as connection:
        yield connection


def _emptied(service: Service) -> Service:
    with service.context.database.transaction() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    shutil.rmtree(service.context.settings.blob_dir / "sha256", ignore_errors=True)
    for leftover in (*service.incoming(), *service.context.settings.uploads_dir.iterdir()):
        leftover.unlink()
    return service
