"""Real worker and dispatcher processes: what a user sees when any of them is killed, stopped or asked to cancel."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from app.store import jobs
from app.store.events import events_after
from app.store.ids import FusionId
from app.store.states import FusionState
from tests.worker.conftest import LONG
from tests.worker.rig import Rig, job_process

ENDLESS: dict[str, Any] = {"width": 512, "sweeps": 1000}


def _succeeds(rig: Rig, recipe: dict[str, Any]) -> None:
    fusion = rig.ended(rig.submit(recipe))
    assert (fusion.state, fusion.attempt) == (FusionState.SUCCEEDED, 1), fusion.error


def _events(rig: Rig, fusion_id: FusionId) -> list[str]:
    with rig.database.reading() as session:
        return [event.type for event in events_after(session, fusion_id, 0, 10_000)]


def test_a_fusion_goes_from_queue_to_artifacts(each_rig: Rig) -> None:
    each_rig.dispatcher()
    each_rig.worker()
    fusion_id = each_rig.submit(each_rig.recipe())
    fusion = each_rig.ended(fusion_id)
    assert fusion.state is FusionState.SUCCEEDED, fusion.error
    assert {"model.safetensors", "report.json", "trace.parquet"} <= {file.path for file in fusion.artifacts}
    assert fusion.verdict is not None
    assert each_rig.work_folders() == []
    events = _events(each_rig, fusion_id)
    assert events[:3] == ["queued", "started", "stage_started"]
    assert events[-2:] == ["stage_finished", "succeeded"]
    assert events.count("stage_finished") == 2


def test_a_job_delivered_many_times_runs_once(rig: Rig) -> None:
    from worker.celery_app import app

    fusion_id = rig.submit(rig.recipe())
    with app.connection_for_write(rig.settings.resolved_broker_url) as connection:
        for _ in range(5):
            app.send_task("fusions.run", args=[fusion_id], queue="fusion.cpu", connection=connection)
    rig.worker()
    rig.worker()
    rig.ended(fusion_id)
    _wait(lambda: rig.log().count("nothing to do") == 4, rig)
    assert rig.row(fusion_id).attempt == 1
    assert _events(rig, fusion_id).count("started") == 1


def test_a_killed_child_s_job_is_taken_up_again_at_once_and_ends_with_the_same_bytes(
    rig: Rig, undisturbed: str
) -> None:
    rig.settings = rig.settings.model_copy(update={"lease_seconds": 600.0})  # only the parent can be this fast
    rig.dispatcher()
    worker = rig.worker()
    fusion_id = rig.submit(rig.recipe(**LONG))
    rig.deciding(fusion_id)
    job_process(worker).kill()
    rig.wait(fusion_id, lambda fusion: fusion.attempt == 2, 20)
    fusion = rig.ended(fusion_id)
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 2, 1)
    assert rig.model(fusion_id) == undisturbed
    assert rig.work_folders() == []


def test_a_killed_worker_s_job_is_taken_up_by_another_and_ends_with_the_same_bytes(
    each_rig: Rig, undisturbed: str
) -> None:
    each_rig.dispatcher()
    first = each_rig.worker()
    fusion_id = each_rig.submit(each_rig.recipe(**LONG))
    each_rig.deciding(fusion_id)
    child = job_process(first)
    first.kill()
    first.wait(10)
    _wait(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, each_rig)
    each_rig.worker()
    fusion = each_rig.ended(fusion_id)
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 2, 1)
    assert each_rig.model(fusion_id) == undisturbed
    _wait(lambda: each_rig.work_folders() == [], each_rig)


def test_a_job_that_kills_every_process_that_runs_it_fails_in_the_end(rig: Rig) -> None:
    rig.settings = rig.settings.model_copy(update={"lease_seconds": 600.0})
    rig.dispatcher()
    worker = rig.worker()
    fusion_id = rig.submit(rig.recipe(**ENDLESS))
    for attempt in range(1, rig.settings.max_attempts + 1):
        rig.deciding(fusion_id, attempt)
        job_process(worker).kill()
    fusion = rig.ended(fusion_id)
    assert fusion.state is FusionState.FAILED
    assert fusion.error is not None
    assert fusion.error["code"] == "fusion.attempts_exhausted"
    assert "signal 9" in fusion.error["detail"]
    assert len(fusion.error["errors"]) == 3
    _succeeds(rig, rig.recipe())  # the worker goes on


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_worker_gives_its_job_back_at_once_and_uncounted(rig: Rig, asked: signal.Signals) -> None:
    rig.settings = rig.settings.model_copy(update={"lease_seconds": 600.0})
    rig.dispatcher()
    worker = rig.worker()
    fusion_id = rig.submit(rig.recipe(**ENDLESS))
    rig.deciding(fusion_id)
    _stop(worker, asked)
    rig.wait(fusion_id, lambda fusion: fusion.state == FusionState.QUEUED, 5)
    fusion = rig.row(fusion_id)
    assert (fusion.attempt, fusion.losses) == (1, 0)
    assert rig.work_folders() == []
    rig.worker()
    rig.deciding(fusion_id, attempt=2)


def test_an_idle_worker_stops_at_once(rig: Rig) -> None:
    worker = rig.worker()
    rig.dispatcher()
    _succeeds(rig, rig.recipe())
    assert _stop(worker, signal.SIGTERM) < 5


def test_cancel_ends_a_running_fusion_within_seconds_and_leaves_no_folder(
    rig: Rig, record_property: Callable[[str, object], None]
) -> None:
    rig.dispatcher()
    rig.worker()
    fusion_id = rig.submit(rig.recipe(**ENDLESS))
    rig.deciding(fusion_id)
    with rig.database.transaction() as session:
        jobs.request_cancel(session, fusion_id)
    asked = time.monotonic()
    fusion = rig.ended(fusion_id, 10)
    took = time.monotonic() - asked
    record_property("seconds from cancel to cancelled", round(took, 3))
    assert fusion.state is FusionState.CANCELLED
    assert rig.work_folders() == []
    assert took < 5  # 2 is the promise; the rest is for a loaded machine


def test_the_next_job_after_a_failed_one_runs(rig: Rig) -> None:
    rig.dispatcher()
    rig.worker()
    recipe = rig.recipe()
    gone = recipe["sources"][0] | {"checkpoint": "ckpt_gone"}
    fusion = rig.ended(rig.submit(recipe | {"sources": [gone, recipe["sources"][1]]}))
    assert fusion.state is FusionState.FAILED
    assert fusion.error is not None
    assert [problem["code"] for problem in fusion.error["errors"]] == ["input.missing"]
    _succeeds(rig, recipe)


def _stop(process: subprocess.Popen[bytes], asked: signal.Signals) -> float:
    began = time.monotonic()
    process.send_signal(asked)
    process.wait(30)
    return time.monotonic() - began


def _wait(done: Callable[[], bool], rig: Rig, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, rig.log()
        time.sleep(0.05)
