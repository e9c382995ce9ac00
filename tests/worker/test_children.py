"""A worker's child runs small jobs one after the other; after a large one a fresh child takes over."""

from __future__ import annotations

import os
import signal
from typing import Any

import psutil
import torch

from app.store.events import EventType
from app.store.states import FusionState
from tests.worker.rig import Rig, job_process
from worker import pool


def _child_of(rig: Rig, fusion_id: str) -> str:
    (started,) = [event.data["worker"] for event in rig.events(fusion_id, EventType.STARTED)]
    return str(started)


def _linear(rig: Rig, rows: int, columns: int) -> dict[str, Any]:
    names = [rig.checkpoint({"0.weight": torch.ones(rows, columns)}) for _ in range(2)]
    sources = [{"name": f"s{place}", "checkpoint": name} for place, name in enumerate(names)]
    return {"sources": sources, "stages": [{"method": "linear"}]}


def _run(rig: Rig, width: int = 8) -> str:
    fusion_id = rig.submit(rig.recipe(width=width))
    assert rig.ended(fusion_id).state == FusionState.SUCCEEDED
    return fusion_id


def test_small_jobs_share_a_child_and_give_the_bytes_that_fresh_ones_give(rig: Rig) -> None:
    rig.dispatcher()
    worker = rig.worker()
    first, *others = [_run(rig) for _ in range(4)]
    assert {_child_of(rig, fusion_id) for fusion_id in others} == {_child_of(rig, first)}
    assert {rig.model(fusion_id) for fusion_id in others} == {rig.model(first)}
    os.kill(job_process(worker).pid, signal.SIGKILL)
    after = _run(rig)
    assert _child_of(rig, after) != _child_of(rig, first)
    assert rig.model(after) == rig.model(first)


def test_a_job_that_takes_much_memory_is_the_last_of_its_child(rig: Rig) -> None:
    rig.dispatcher()
    worker = rig.worker()
    small = _run(rig)
    child = job_process(worker)
    fusion_id = rig.submit(_linear(rig, 5000, 4000))  # 80 MB
    assert rig.ended(fusion_id).state == FusionState.SUCCEEDED
    assert _child_of(rig, fusion_id) == _child_of(rig, small)
    rig.until(lambda: not psutil.pid_exists(child.pid) or not child.is_running())
    assert _child_of(rig, _run(rig)) != _child_of(rig, small)


def test_a_child_ends_after_so_many_jobs(rig: Rig) -> None:
    assert pool._JOBS_A_CHILD > 1
    rig.dispatcher()
    rig.worker()
    trivial = _linear(rig, 4, 4)
    ids = [rig.submit(trivial) for _ in range(pool._JOBS_A_CHILD + 1)]
    for fusion_id in ids:
        assert rig.ended(fusion_id).state == FusionState.SUCCEEDED
    assert len({_child_of(rig, fusion_id) for fusion_id in ids}) == 2


def test_a_worker_whose_first_child_is_killed_while_it_starts_goes_on_with_another(rig: Rig) -> None:
    rig.dispatcher()
    worker = psutil.Process(rig.worker().pid)
    while not (children := worker.children()):  # all that is loaded is loaded; now it forks
        assert worker.is_running()
    children[0].kill()
    _run(rig)
    assert "signal 9 (SIGKILL)" in rig.log()
    assert worker.is_running()
