"""Jobs whose inputs and results lie in a real S3-compatible server, which may die at any moment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from app.settings import Settings
from app.store.blobs import Collector, StoredBlob
from app.store.database import Database
from app.store.events import EventType
from app.store.states import FusionState
from tests import services
from tests.worker.conftest import LONG
from tests.worker.rig import Rig


@pytest.fixture
def storage(object_server: services.ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> Iterator[services.ObjectStorage]:
    """A server of the test's own."""
    with services.object_storage() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def rig(sqlite_url: str, broker_url: str, tmp_path: Path, storage: services.ObjectStorage) -> Iterator[Rig]:
    settings = Settings(
        data_dir=tmp_path / "data",
        database_url=sqlite_url,
        broker_url=broker_url,
        republish_seconds=1.0,
        blob_url=storage.prefix(),
        blob_patience_seconds=0.5,
    )
    rig = Rig(settings, Database(settings.resolved_database_url), tmp_path)
    yield rig
    rig.stop()


def test_a_storage_that_dies_while_a_job_runs_costs_an_attempt_and_no_result(
    rig: Rig, storage: services.ObjectStorage, undisturbed: str
) -> None:
    recipe = rig.recipe(**LONG)
    shutil.rmtree(rig.settings.blob_cache_dir)  # the worker is another machine
    rig.dispatcher()
    rig.worker()
    fusion_id = rig.submit(recipe)
    rig.recorded(fusion_id)

    collector = Collector(rig.database, rig.blobs.storage, timedelta())
    assert collector.collect() == 0  # what a job uses is used

    storage.kill()
    rig.until(lambda: bool(rig.events(fusion_id, EventType.REQUEUED)))
    assert "storage of blobs" in rig.events(fusion_id, EventType.REQUEUED)[0].data["seen"]
    assert rig.row(fusion_id).losses == 0
    storage.start()

    fusion = rig.ended(fusion_id, 120)
    assert fusion.state is FusionState.SUCCEEDED, fusion.error
    assert rig.model(fusion_id) == undisturbed
    shutil.rmtree(rig.settings.blob_cache_dir)
    for file in fusion.artifacts:
        with rig.blobs.storage.whole(StoredBlob(file.digest, file.size)) as path:  # compared with its digest
            assert path.stat().st_size == file.size
    rig.until(lambda: rig.work_folders() == [])
