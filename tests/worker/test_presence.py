"""Workers tell which queues they serve, so that a job that nobody will take is seen."""

from __future__ import annotations

import signal
import subprocess
from datetime import timedelta

import pytest
from sqlalchemy import select

from app.store import workers
from app.store.models import WorkerSign
from app.store.states import FusionState
from tests.worker.conftest import LONG
from tests.worker.rig import Rig, job_process
from worker.housekeeping import forget_workers
from worker.presence import Presence
from worker.process import WORKER


def _serving(rig: Rig) -> dict[str, int]:
    with rig.database.reading() as session:
        return dict(workers.serving(session, timedelta(seconds=rig.settings.lease_seconds)))


def _names(rig: Rig) -> list[str]:
    with rig.database.reading() as session:
        return [*session.scalars(select(WorkerSign.name))]


def _ended(process: subprocess.Popen[bytes], asked: signal.Signals) -> None:
    process.send_signal(asked)
    assert process.wait(60) == 0


def test_workers_count_for_their_queues_until_they_stop(each_rig: Rig) -> None:
    rig = each_rig
    rig.settings = rig.settings.model_copy(update={"lease_seconds": 600.0})  # no beat comes in time to tell of the stop
    both, io = rig.worker("fusion.cpu,fusion.cuda"), rig.worker("io")
    rig.until(lambda: _serving(rig) == {"fusion.cpu": 1, "fusion.cuda": 1, "io": 1})
    rig.until(lambda: rig.log().count(" ready.") == 2)
    _ended(both, signal.SIGTERM)
    assert len(_names(rig)) == 1
    _ended(io, signal.SIGTERM)
    assert _names(rig) == []


def test_a_worker_that_was_killed_counts_no_longer_than_a_lease_and_is_cleared_away(each_rig: Rig) -> None:
    rig = each_rig
    worker = rig.worker()
    rig.until(lambda: _serving(rig) == {"fusion.cpu": 1})
    worker.kill()
    rig.until(lambda: _serving(rig) == {}, 20)
    assert len(_names(rig)) == 1
    forget_workers(rig.database, rig.settings)
    assert _names(rig) == []


def test_a_worker_goes_on_counting_while_a_job_runs_and_no_longer_once_it_drains(rig: Rig, undisturbed: str) -> None:
    rig.dispatcher()
    worker = rig.worker()
    fusion_id = rig.submit(rig.recipe(**LONG))
    rig.deciding(fusion_id)
    assert _serving(rig) == {"fusion.cpu": 1}
    child = job_process(worker)
    worker.send_signal(signal.SIGUSR2)
    rig.until(lambda: _serving(rig) == {})
    assert child.is_running()
    assert rig.ended(fusion_id).state is FusionState.SUCCEEDED
    assert rig.model(fusion_id) == undisturbed
    assert worker.wait(60) == 0


def test_one_that_was_cleared_away_while_it_was_cut_off_signs_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", rig.settings.resolved_database_url)
    presence = Presence({"fusion.cpu"}, rig.settings)
    presence.begin()
    rig.until(lambda: _names(rig) == [WORKER])
    with rig.database.transaction() as session:
        workers.leave(session, WORKER)
    rig.until(lambda: _names(rig) == [WORKER], 20)
    presence.end()
    assert _names(rig) == []
