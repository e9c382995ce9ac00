"""Jobs whose process lives and does nothing: the core stands still, the lease's keeper is dead, all of it is stopped."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import psutil
import pytest

from app.store import jobs
from app.store.events import EventType, events_after
from app.store.states import FusionState
from cogram_core.errors import FusionStopped
from tests.worker.conftest import LONG
from tests.worker.rig import Rig, job_process
from tests.worker.stalling import KEEPERLESS
from worker.keeper import Holder, Keeper
from worker.lease import Ledger, Store

STALLING = "tests.worker.stalling"


def _pipe(rig: Rig, name: str) -> None:
    """What a job stands still at."""
    os.mkfifo(rig.settings.data_dir / name)


def test_a_fusion_that_gives_no_sign_of_life_is_taken_from_its_process_and_run_again(each_rig: Rig) -> None:
    rig = each_rig
    rig.settings = rig.settings.model_copy(update={"lease_seconds": 600.0, "stall_seconds": 1.0})
    fusion_id = rig.submit(rig.recipe())
    _pipe(rig, "stall")
    rig.dispatcher()
    worker = rig.worker(module=STALLING)
    fusion = rig.ended(fusion_id)  # long before a lease could run out
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 2, 1), rig.log()
    (requeued,) = rig.events(fusion_id, EventType.REQUEUED)
    assert requeued.attempt == 1
    assert requeued.data["seen"].startswith("stalled: no sign of life for")
    assert requeued.data["seen"].endswith("in stage 1 of 2 (linear)")
    assert worker.poll() is None


def test_one_that_stalls_at_every_attempt_fails_with_what_was_seen_and_the_worker_goes_on(rig: Rig) -> None:
    rig.settings = rig.settings.model_copy(update={"lease_seconds": 600.0, "stall_seconds": 1.0, "max_attempts": 2})
    fusion_id = rig.submit(rig.recipe())
    _pipe(rig, "stall-1")
    _pipe(rig, "stall-2")
    rig.dispatcher()
    rig.worker(module=STALLING)
    fusion = rig.ended(fusion_id)
    assert fusion.error is not None
    assert fusion.error["code"] == "fusion.attempts_exhausted"
    assert ["stalled" in problem["message"] for problem in fusion.error["errors"]] == [True, True]
    rig.succeeds(rig.recipe())


def test_a_child_whose_keeper_is_dead_and_whose_core_stands_still_is_ended_by_its_parent(rig: Rig) -> None:
    fusion_id = rig.submit(rig.recipe())
    _pipe(rig, KEEPERLESS)
    rig.dispatcher()
    rig.worker(module=STALLING)
    fusion = rig.ended(fusion_id)
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 2, 1), rig.log()
    assert "child killed, long after its lease ran out" in rig.log()


def test_a_run_whose_keeper_is_dead_stops_when_its_lease_has_run_out(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "_run", lambda keeper: None)
    fusion_id = rig.submit(rig.recipe())
    with Ledger(Store(rig.database, rig.blobs), rig.settings, Holder("host:1", lambda: False)).lease(fusion_id) as job:
        assert job is not None
        rig.until(job.should_stop, 30)
        raise FusionStopped("asked to")
    fusion = rig.row(fusion_id)
    assert (fusion.state, fusion.attempt) == (FusionState.RUNNING, 1)  # nothing is written; the reaper brings it back
    with rig.database.transaction() as session:
        assert jobs.requeue_expired(session, 3) == [fusion_id]


def test_every_file_that_is_fetched_or_stored_is_a_sign_of_life(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    fusion_id = rig.submit(rig.recipe())
    signs: list[str | None] = []
    alive = Keeper.alive

    def counted(keeper: Keeper, doing: str | None = None) -> None:
        signs.append(doing)
        alive(keeper, doing)

    monkeypatch.setattr(Keeper, "alive", counted)
    with Ledger(Store(rig.database, rig.blobs), rig.settings, Holder("me", lambda: False)).lease(fusion_id) as job:
        assert job is not None
        inputs = {path for place in job.inputs.values() for path in (place, *place.rglob("*")) if path.is_file()}
        assert len(inputs) > 1
        assert signs == ["while its inputs were fetched", *[None] * len(inputs)]
        signs.clear()
        for name in ("a", "b", "c"):
            (job.output / name).parent.mkdir(exist_ok=True)
            (job.output / name).write_text(name)
        job.finish(SimpleNamespace(verdict={}))  # type: ignore[arg-type]
        assert signs == ["while its result was stored", *[None] * 6]  # read and synced, then placed
    assert rig.row(fusion_id).state == FusionState.SUCCEEDED


def test_a_worker_that_was_stopped_as_a_whole_writes_nothing_when_it_goes_on(each_rig: Rig, undisturbed: str) -> None:
    rig = each_rig
    rig.dispatcher()
    first = rig.worker()
    fusion_id = rig.submit(rig.recipe(**LONG))
    rig.deciding(fusion_id)
    child = job_process(first)
    for process in (first, child):
        process.send_signal(signal.SIGSTOP)
    rig.worker()
    fusion = rig.ended(fusion_id)
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 2, 1)
    before = _told(rig, fusion_id)
    for process in (first, child):
        process.send_signal(signal.SIGCONT)
    psutil.wait_procs([child], 60)
    assert not child.is_running()
    assert _told(rig, fusion_id) == before
    assert rig.model(fusion_id) == undisturbed
    rig.until(lambda: rig.work_folders() == [])


def _told(rig: Rig, fusion_id: str) -> list[tuple[int, str]]:
    with rig.database.reading() as session:
        return [(event.attempt, event.type) for event in events_after(session, fusion_id, 0, 10_000)]
