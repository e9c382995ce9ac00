"""Migrations make exactly the tables that the models describe, on both databases, and can be undone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text

from app.store.database import Database
from app.store.migrate import downgrade, migrate
from app.store.models import Base, Blob, Checkpoint, Dataset, Fusion, UploadedFile
from tests.services import PostgreSQL


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.sqlite3'}"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql_server")
    with server.empty_database() as url:
        yield url


def _tables(url: str) -> set[str]:
    database = Database(url)
    try:
        return set(inspect(database.engine).get_table_names()) - {"alembic_version"}
    finally:
        database.close()


def test_a_migrated_database_has_exactly_the_tables_of_the_models(database: Database) -> None:
    with database.engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    assert _tables(database.url) == set(Base.metadata.tables)


def test_migrating_twice_changes_nothing(empty_url: str) -> None:
    migrate(empty_url)
    migrate(empty_url)
    assert _tables(empty_url) == set(Base.metadata.tables)


def test_downgrading_to_the_base_leaves_no_table(empty_url: str) -> None:
    migrate(empty_url)
    downgrade(empty_url, "base")
    assert _tables(empty_url) == set()


def test_datasets_from_before_other_losses_hold_classes(empty_url: str) -> None:
    migrate(empty_url)
    downgrade(empty_url, "0001")
    database = Database(empty_url)
    try:
        with database.engine.begin() as connection:
            connection.execute(text("INSERT INTO blobs (digest, size, created_at) VALUES ('d', 1, '2026-01-01')"))
            connection.execute(
                text(
                    "INSERT INTO datasets (id, name, digest, path, size, examples, input_shape, target_min, target_max,"
                    " created_at) VALUES ('data_1', 'n', 'd', 'p', 1, 3, '[2]', 0, 4, '2026-01-01')"
                )
            )
        migrate(empty_url)
        with database.reading() as session:
            (old,) = session.scalars(select(Dataset)).all()
            assert (old.loss, old.target_shape, old.target_max, old.token_max) == ("cross_entropy", [], 4, None)
    finally:
        database.close()


def test_what_was_there_before_tenants_belongs_to_the_local_caller_and_goes_back_unharmed(empty_url: str) -> None:
    migrate(empty_url)
    downgrade(empty_url, "0002")
    database = Database(empty_url)
    now = "'2026-01-01'"
    try:
        with database.engine.begin() as connection:
            for statement in (
                f"INSERT INTO blobs (digest, size, created_at) VALUES ('d', 1, {now})",
                f"INSERT INTO uploaded_files (kind, name, path, digest, size, created_at)"
                f" VALUES ('checkpoint', 'n', 'p', 'd', 1, {now})",
                "INSERT INTO checkpoints (id, name, sha256, tensors, parameters, dtypes, created_at)"
                f" VALUES ('ckpt_1', 'n', 's', 1, 1, '[]', {now})",
                "INSERT INTO checkpoint_files (checkpoint_id, path, digest, size) VALUES ('ckpt_1', 'p', 'd', 1)",
                "INSERT INTO fusions (id, state, recipe, attempt, losses, created_at, updated_at)"
                f" VALUES ('fus_1', 'queued', '{{}}', 0, 0, {now}, {now})",
                f"INSERT INTO outbox (fusion_id, queue, created_at) VALUES ('fus_1', 'fusion.cpu', {now})",
            ):
                connection.execute(text(statement))
        before = _contents(database)
        migrate(empty_url)
        with database.reading() as session:
            rows = [
                *session.scalars(select(UploadedFile)),
                *session.scalars(select(Checkpoint)),
                *session.scalars(select(Fusion)),
            ]
            assert [(row.tenant, row.owner) for row in rows] == [("default", "local")] * 3
            blob = session.scalars(select(Blob)).one()
            assert blob.touched_at == blob.created_at
        downgrade(empty_url, "0002")
        assert _contents(database) == before
    finally:
        database.close()


def _contents(database: Database) -> dict[str, list[tuple[object, ...]]]:
    with database.engine.begin() as connection:
        names = sorted(set(inspect(connection).get_table_names()) - {"alembic_version"})
        return {
            name: [tuple(map(str, row)) for row in connection.execute(text(f"SELECT * FROM {name}"))] for name in names
        }


def test_processes_that_start_at_once_migrate_one_after_the_other(empty_url: str) -> None:
    failures: list[BaseException] = []

    def start() -> None:
        try:
            migrate(empty_url)
        except BaseException as error:  # a thread's failure must reach the test
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert _tables(empty_url) == set(Base.metadata.tables)
