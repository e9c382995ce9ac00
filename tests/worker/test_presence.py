"""Workers tell which queues they serve, so that a job that nobody will take is seen."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from app.store import workers
from app.store.models import WorkerSign
from app.store.states import FusionState
from tests.nursery import Forked
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


def _ended(process: Forked, asked: signal.Signals) -> None:
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


def test_a_database_that_does_not_answer_holds_up_neither_a_fork_nor_the_end(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and never says a word
        monkeypatch.setenv("DATABASE_URL", f"postgresql+psycopg://u@127.0.0.1:{silent.getsockname()[1]}/cogram")
        _ends_in_time(rig)


def test_a_database_that_another_holds_holds_up_neither_a_fork_nor_the_end(
    each_rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = each_rig
    monkeypatch.setenv("DATABASE_URL", rig.settings.resolved_database_url)
    with rig.database.transaction() as session:
        workers.sign(session, WORKER, {"fusion.cpu"})
    with rig.database.transaction() as session:
        workers.leave(session, WORKER)
        session.flush()
        _ends_in_time(rig)


def _ends_in_time(rig: Rig) -> None:
    """A beat is under way when the worker forks, and when it is asked to stop."""
    presence = Presence({"fusion.cpu"}, rig.settings)
    presence.begin()
    rig.until(presence._no_fork.locked)
    asked = time.monotonic()
    subprocess.run(["true"], check=True, preexec_fn=lambda: None)  # a plain fork, which calls what was registered
    forked = time.monotonic()
    presence.end()
    assert 0.5 < forked - asked < 8, "no beat was under way, or it had no limit"
    assert time.monotonic() - forked < 16


def test_whatever_keeps_a_beat_from_the_database_the_next_one_tries_again_and_the_log_tells_of_both_once(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/file/cogram.sqlite3")  # no folder can be made there
    presence = Presence({"fusion.cpu"}, rig.settings)
    with capture_logs() as logged:
        presence.begin()
        time.sleep(3 * rig.settings.heartbeat_seconds)
        monkeypatch.setenv("DATABASE_URL", rig.settings.resolved_database_url)
        rig.until(lambda: _names(rig) == [WORKER], 20)
        time.sleep(2 * rig.settings.heartbeat_seconds)
        presence.end()
    assert [entry["event"] for entry in logged] == ["presence not told", "presence told again"]
    assert _names(rig) == []
