"""A real server over real sockets for every test of the HTTP side, on each kind of database."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.api import make_server
from app.context import Context
from app.listening import listen
from app.settings import Settings
from app.store.database import Database
from tests.app.factories import Service


@contextmanager
def running(settings: Settings) -> Iterator[Service]:
    """The API in a thread of this process, on a free port."""
    server = make_server(settings)
    listener = listen("127.0.0.1", 0)
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


@pytest.fixture
def settings(database_url: str, broker_server: str, tmp_path: Path) -> Settings:
    """For the service on each kind of database."""
    return small(tmp_path, database_url, broker_server)


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


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    """The running service."""
    with running(settings) as started:
        yield started


@pytest.fixture
def sqlite_service(sqlite_url: str, broker_server: str, tmp_path: Path) -> Iterator[Service]:
    """The running service on SQLite alone, for tests that never come to a database."""
    with running(small(tmp_path, sqlite_url, broker_server)) as started:
        yield started


@pytest.fixture
def http(service: Service) -> httpx.Client:
    """A client of the running service."""
    return service.http


@pytest.fixture
def database(service: Service) -> Database:
    """The running service's database."""
    return service.context.database


@pytest.fixture
def raw(http: httpx.Client) -> Iterator[socket.socket]:
    """A plain connection to the service, for requests that no client library would send."""
    connection = socket.create_connection((http.base_url.host, http.base_url.port or 80), 10)
    yield connection
    connection.close()
