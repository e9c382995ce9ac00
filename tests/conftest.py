"""Fixtures that every floor's tests share: real servers, and a migrated database of either kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from app.store.database import Database
from app.store.migrate import migrate
from tests import services

# What takes longest comes first where several processes share the files, so that they end together.
_FLOORS = ("gpu", "chaos", "e2e", "worker", "app", "store", "bench", "core")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By floors, and on each as it was."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        here = Path(__file__).parent
        items.sort(key=lambda item: _FLOORS.index(item.path.relative_to(here).parts[0]))


@pytest.fixture(scope="session")
def broker_server() -> Iterator[str]:
    """The URL of a running Valkey."""
    with services.broker() as url:
        yield url


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a running Redis."""
    with services.redis() as url:
        yield url


@pytest.fixture
def broker_url(request: pytest.FixtureRequest) -> str:
    """The URL of a broker that holds nothing from another test: Redis beside PostgreSQL, else Valkey.

    So what runs on each database runs on the two stacks that people have, and not on all four.
    """
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    beside_postgresql = parameters.get("database_url") == "postgresql"
    url: str = request.getfixturevalue("redis_server" if beside_postgresql else "broker_server")
    client = redis.Redis.from_url(url.replace("redis+socket://", "unix://"))
    client.flushdb()
    client.close()
    return url


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[services.PostgreSQL]:
    """A running PostgreSQL."""
    with services.postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the newest schema; tests take copies."""
    path = tmp_path_factory.mktemp("sqlite") / "template.sqlite3"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """A fresh migrated SQLite database in the test's folder."""
    path = tmp_path / "cogram.sqlite3"
    shutil.copyfile(migrated_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgresql_server: services.PostgreSQL) -> Iterator[str]:
    """A fresh migrated PostgreSQL database."""
    with postgresql_server.database() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A fresh migrated database; every test that uses it runs once on each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open, fresh, migrated database of each kind."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture(scope="session")
def object_server() -> Iterator[services.ObjectStorage]:
    """A running S3-compatible server, whose options stand in this process's environment from then on."""
    with services.object_storage() as server:
        os.environ.update(server.environment)
        yield server


@pytest.fixture
def mortal(object_server: services.ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> Iterator[services.ObjectStorage]:
    """An object storage of the test's own."""
    with services.object_storage() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def blob_url(object_server: services.ObjectStorage) -> str:
    """An empty place in the object storage."""
    return object_server.prefix()
