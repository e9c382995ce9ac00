"""Attempts in this process: their ledger, what they write, and how they wait."""

from __future__ import annotations

import time
from collections.abc import Callable

from app.store.ids import FusionId
from cogram_core.errors import FusionStopped
from cogram_core.pipeline import Fusion as Result
from tests.worker.rig import Rig
from worker.keeper import Holder
from worker.lease import Job, Ledger, Store


def ledger_of(rig: Rig, name: str = "host:1", stopping: Callable[[], bool] = lambda: False) -> Ledger:
    return Ledger(Store(rig.database, rig.blobs), rig.settings, Holder(name, stopping))


def submitted(rig: Rig) -> FusionId:
    return rig.submit(rig.recipe())


def written(job: Job, text: str = "fused") -> Result:
    assert job.inputs
    (job.output / "deep").mkdir(parents=True)
    (job.output / "model.safetensors").write_text(text)
    (job.output / "deep" / "report.json").write_text("{}")
    return Result(job.output, {"fused_beats_all_sources": True, "loss": float("inf")}, {})


def run_until_stopped(job: Job, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not job.should_stop():
        assert time.monotonic() < end, "was never asked to stop"
        time.sleep(0.01)
    raise FusionStopped("asked to")
