"""Several workers on one broker: each job runs once, whoever dies meanwhile; and a worker that is to end when it is done."""

from __future__ import annotations

import signal
from collections import Counter

import psutil
from sqlalchemy import func, select

from app.store.events import EventType
from app.store.models import Event, Fusion
from app.store.states import FINAL, FusionState
from tests.worker.conftest import LONG
from tests.worker.rig import Rig
from worker.celery_app import app

JOBS = 12


def test_many_jobs_run_on_all_workers_and_each_once_whoever_is_killed(each_rig: Rig) -> None:
    rig = each_rig
    rig.settings = rig.settings.model_copy(
        update={"max_attempts": 10}
    )  # where many share a processor, a lease may run out
    recipe = rig.recipe()
    first, second = rig.worker(), rig.worker()
    rig.until(lambda: all(psutil.Process(worker.pid).children() for worker in (first, second)))
    fusions = [rig.submit(recipe) for _ in range(JOBS)]
    with app.connection_for_write(rig.settings.resolved_broker_url) as connection:
        for fusion_id in fusions[::3]:  # messages beside those that the dispatcher sends
            app.send_task("fusions.run", args=[fusion_id], queue="fusion.cpu", connection=connection)
    dispatcher = rig.dispatcher()
    rig.until(lambda: len(_hosts(rig)) == 2)
    dispatcher.kill()  # between publishing and its mark, or anywhere else
    rig.dispatcher()
    for child in psutil.Process(second.pid).children():
        child.kill()
    rig.until(lambda: _ended(rig) >= JOBS // 3)
    first.kill()
    rig.worker()
    rig.until(lambda: _ended(rig) == JOBS)
    with rig.database.reading() as session:
        told = Counter(session.scalars(select(Event.type).where(Event.type.in_(("succeeded", "failed", "cancelled")))))
    assert told == {"succeeded": JOBS}
    assert len({rig.model(fusion_id) for fusion_id in fusions}) == 1
    rig.until(lambda: rig.work_folders() == [])


def test_a_worker_that_drains_ends_what_it_runs_and_leaves_the_rest_to_others(rig: Rig, undisturbed: str) -> None:
    rig.dispatcher()
    worker = rig.worker()
    running = rig.submit(rig.recipe(**LONG))
    rig.deciding(running)
    waiting = rig.submit(rig.recipe())
    worker.send_signal(signal.SIGUSR2)
    assert worker.wait(100) == 0
    fusion = rig.row(running)
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.SUCCEEDED, 1, 0)
    assert rig.model(running) == undisturbed
    assert rig.row(waiting).state is FusionState.QUEUED
    rig.worker()
    fusion = rig.ended(waiting)
    assert (fusion.state, fusion.attempt) == (FusionState.SUCCEEDED, 1)
    assert [event.type for event in rig.events(waiting, EventType.REQUEUED)] == []


def _hosts(rig: Rig) -> set[str]:
    """The workers that have begun a job."""
    with rig.database.reading() as session:
        started = session.scalars(select(Event.data).where(Event.type == EventType.STARTED))
        return {data["worker"].split("/")[0] for data in started}


def _ended(rig: Rig) -> int:
    with rig.database.reading() as session:
        return session.scalar(select(func.count()).select_from(Fusion).where(Fusion.state.in_(FINAL))) or 0
