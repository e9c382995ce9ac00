"""Jobs whose inputs and results lie in a real S3-compatible server, which may die at any moment."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from app.settings import Settings
from app.store.blobs import Collector, StoredBlob
from app.store.database import Database
from app.store.events import EventType
from app.store.states import FusionState
from tests import services
from tests.worker.conftest import LONG
from tests.worker.rig import Rig
from tests.worker.slow_line import slow_line


@pytest.fixture
def rig(sqlite_url: str, broker_url: str, tmp_path: Path, mortal: services.ObjectStorage) -> Iterator[Rig]:
    settings = Settings(
        data_dir=tmp_path / "data",
        database_url=sqlite_url,
        broker_url=broker_url,
        republish_seconds=1.0,
        blob_url=mortal.prefix(),
        blob_patience_seconds=0.5,
    )
    rig = Rig(settings, Database(settings.resolved_database_url), tmp_path)
    yield rig
    rig.stop()


def test_a_storage_that_dies_while_a_job_runs_costs_an_attempt_and_no_result(
    rig: Rig, mortal: services.ObjectStorage, undisturbed: str
) -> None:
    recipe = rig.recipe(**LONG)
    shutil.rmtree(rig.settings.blob_cache_dir)  # the worker is another machine
    rig.dispatcher()
    rig.worker()
    fusion_id = rig.submit(recipe)
    rig.recorded(fusion_id)

    collector = Collector(rig.database, rig.blobs.storage, timedelta())
    assert collector.collect() == 0  # what a job uses is used

    mortal.kill()
    rig.until(lambda: bool(rig.events(fusion_id, EventType.REQUEUED)))
    assert "storage of blobs" in rig.events(fusion_id, EventType.REQUEUED)[0].data["seen"]
    assert rig.row(fusion_id).losses == 0
    mortal.start()

    fusion = rig.ended(fusion_id, 120)
    assert fusion.state is FusionState.SUCCEEDED, fusion.error
    assert rig.model(fusion_id) == undisturbed
    shutil.rmtree(rig.settings.blob_cache_dir)
    for file in fusion.artifacts:
        with rig.blobs.storage.whole(StoredBlob(file.digest, file.size)) as path:  # compared with its digest
            assert path.stat().st_size == file.size
    rig.until(lambda: rig.work_folders() == [])


def test_an_input_that_takes_longer_than_a_stall_to_come_is_waited_for_as_long_as_it_comes(
    rig: Rig, mortal: services.ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.settings = rig.settings.model_copy(update={"stall_seconds": 5.0})
    large = rig.checkpoint({"0.weight": torch.rand(1024, 10 * 1024)})  # 40 MiB
    sources = [{"name": name, "checkpoint": large} for name in "ab"]
    shutil.rmtree(rig.settings.blob_cache_dir)
    server = urlsplit(mortal.environment["AWS_ENDPOINT_URL"])
    assert server.port is not None
    with slow_line(server.port, 4 * 2**20) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        rig.dispatcher()
        rig.worker()
        fusion = rig.ended(rig.submit({"sources": sources, "stages": [{"method": "linear"}]}))
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 1, 0), rig.log()
    assert fusion.started_at is not None
    assert fusion.finished_at is not None
    assert fusion.finished_at - fusion.started_at > timedelta(seconds=2 * rig.settings.stall_seconds - 1)
