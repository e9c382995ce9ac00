"""Which worker takes which job: its queue says so, and the queue follows from the device."""

from __future__ import annotations

import pytest
from celery import Celery

from app.store.states import FusionState
from tests.worker.rig import Rig
from worker.queues import depth


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the machine has one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_a_job_for_a_gpu_is_left_alone_until_a_worker_of_its_queue_comes(each_rig: Rig, celery: Celery) -> None:
    rig = each_rig
    recipe = rig.recipe()
    rig.dispatcher()
    rig.worker("fusion.cpu")
    on_gpu = [rig.submit(recipe | {"device": device}) for device in ("cuda", "cuda:1")]
    rig.until(lambda: depth(celery, "fusion.cuda") == len(on_gpu))
    for device in ({"device": "cpu"}, {"device": "auto"}, {}):
        rig.succeeds(recipe | device)
    assert [(row.state, row.attempt) for row in map(rig.row, on_gpu)] == [(FusionState.QUEUED, 0)] * 2
    assert depth(celery, "fusion.cuda") == len(on_gpu)
    rig.worker("fusion.cpu,fusion.cuda")
    for fusion_id, device in zip(on_gpu, ("cuda", "cuda:1"), strict=True):
        fusion = rig.ended(fusion_id)
        assert (fusion.state, fusion.attempt) == (FusionState.FAILED, 1)
        assert fusion.error is not None
        assert [(problem["location"], problem["code"], problem["message"]) for problem in fusion.error["errors"]] == [
            ("device", "recipe.no_such_device", f"{device}: this machine has 0 CUDA devices; write device: auto or cpu")
        ]
    rig.succeeds(recipe)


def test_a_worker_of_the_gpu_queue_alone_takes_no_other_job(rig: Rig, celery: Celery) -> None:
    recipe = rig.recipe()
    rig.dispatcher()
    rig.worker("fusion.cuda")
    anywhere = rig.submit(recipe | {"device": "auto"})
    rig.until(lambda: depth(celery, "fusion.cpu") == 1)
    assert rig.ended(rig.submit(recipe | {"device": "cuda"})).state is FusionState.FAILED
    fusion = rig.row(anywhere)
    assert (fusion.state, fusion.attempt) == (FusionState.QUEUED, 0)
