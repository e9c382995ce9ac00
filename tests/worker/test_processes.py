"""Real worker and dispatcher processes: what a user sees when any of them is killed, stopped or asked to cancel."""

from __future__ import annotations

import signal
import time

import psutil
import pytest

from app.store.events import EventType, events_after
from app.store.ids import FusionId
from app.store.states import FusionState
from tests.nursery import Forked
from tests.worker.conftest import ENDLESS, LONG
from tests.worker.rig import Rig, job_process


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
    each_rig.until(lambda: each_rig.work_folders() == [])
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
    rig.until(lambda: rig.log().count("nothing to do") == 4)
    assert rig.row(fusion_id).attempt == 1
    assert _events(rig, fusion_id).count("started") == 1


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
    each_rig.until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    each_rig.worker()
    fusion = each_rig.ended(fusion_id)
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 2, 1)
    assert each_rig.model(fusion_id) == undisturbed
    each_rig.until(lambda: each_rig.work_folders() == [])


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
    left = rig.settings.work_dir / fusion_id / "1"
    rig.until(lambda: [path.name for path in left.iterdir()] == ["trace.journal"])
    rig.worker()
    rig.deciding(fusion_id, attempt=2)
    rig.until(lambda: rig.events(fusion_id, EventType.RESUMED))  # told when all that was recorded is taken over
    (resumed,) = rig.events(fusion_id, EventType.RESUMED)
    assert (resumed.attempt, resumed.data["decisions"] > 0) == (2, True)


def test_an_idle_worker_stops_at_once(rig: Rig) -> None:
    worker = rig.worker()
    rig.dispatcher()
    rig.succeeds(rig.recipe())
    assert _stop(worker, signal.SIGTERM) < 5


def _stop(process: Forked, asked: signal.Signals) -> float:
    began = time.monotonic()
    process.send_signal(asked)
    process.wait(30)
    return time.monotonic() - began
