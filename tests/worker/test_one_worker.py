"""One worker that goes on through all of this file: children killed, jobs cancelled, jobs that can't be done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.store import jobs
from app.store.events import EventType
from app.store.states import FusionState
from tests import services
from tests.worker.conftest import ENDLESS, LONG, rig_on
from tests.worker.rig import Rig, job_process


@pytest.fixture(scope="module")
def rig(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A worker and a dispatcher; the lease is so long that only the worker's parent can bring a job back in time."""
    folder = tmp_path_factory.mktemp("one-worker")
    url = f"sqlite:///{shutil.copyfile(migrated_sqlite, folder / 'cogram.sqlite3')}"
    with services.broker() as broker_url, rig_on(url, broker_url, folder, lease_seconds=600.0) as made:
        made.worker()
        made.dispatcher()
        yield made


def test_a_killed_child_s_job_is_taken_up_again_at_once_and_ends_with_the_same_bytes(
    rig: Rig, undisturbed: str
) -> None:
    fusion_id = rig.submit(rig.recipe(**LONG))
    rig.deciding(fusion_id)
    rig.recorded(fusion_id)
    job_process(rig.processes[0]).kill()
    rig.wait(fusion_id, lambda fusion: fusion.attempt == 2, 20)  # long before the lease runs out
    fusion = rig.ended(fusion_id)
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 2, 1)
    assert rig.model(fusion_id) == undisturbed
    (resumed,) = rig.events(fusion_id, EventType.RESUMED)
    assert resumed.attempt == 2
    assert resumed.data["decisions"] > 0
    assert fusion.progress is not None
    assert fusion.progress["resumed_after"] == resumed.data["decisions"]
    rig.until(lambda: fusion_id not in rig.work_folders())


def test_a_job_that_kills_every_process_that_runs_it_fails_in_the_end(rig: Rig) -> None:
    fusion_id = rig.submit(rig.recipe(**ENDLESS))
    for attempt in range(1, rig.settings.max_attempts + 1):
        rig.deciding(fusion_id, attempt)
        job_process(rig.processes[0]).kill()
    fusion = rig.ended(fusion_id)
    assert fusion.state is FusionState.FAILED
    assert fusion.error is not None
    assert fusion.error["code"] == "fusion.attempts_exhausted"
    assert "signal 9" in fusion.error["detail"]
    assert len(fusion.error["errors"]) == 3
    rig.succeeds(rig.recipe())  # the worker goes on
    rig.until(lambda: fusion_id not in rig.work_folders())


def test_cancel_ends_a_running_fusion_within_seconds_and_leaves_no_folder(
    rig: Rig, record_property: Callable[[str, object], None]
) -> None:
    fusion_id = rig.submit(rig.recipe(**ENDLESS))
    rig.deciding(fusion_id)
    with rig.database.transaction() as session:
        jobs.request_cancel(session, fusion_id)
    asked = time.monotonic()
    fusion = rig.ended(fusion_id, 10)
    took = time.monotonic() - asked
    record_property("seconds from cancel to cancelled", round(took, 3))
    assert fusion.state is FusionState.CANCELLED
    rig.until(lambda: fusion_id not in rig.work_folders())
    assert took < 5  # 2 is the promise; the rest is for a loaded machine


def test_the_next_job_after_a_failed_one_runs(rig: Rig) -> None:
    recipe = rig.recipe()
    gone = recipe["sources"][0] | {"checkpoint": "ckpt_gone"}
    fusion = rig.ended(rig.submit(recipe | {"sources": [gone, recipe["sources"][1]]}))
    assert fusion.state is FusionState.FAILED
    assert fusion.error is not None
    assert [problem["code"] for problem in fusion.error["errors"]] == ["input.missing"]
    rig.succeeds(recipe)
