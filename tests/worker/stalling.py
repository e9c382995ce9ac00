"""A worker whose jobs may stand still, each at the start of a stage, as if a disk no longer answered.

Pipes that nobody writes to lie in the data folder. A job that finds one opens it, and that call never returns; the next
attempt finds one less. While one with ``keeperless`` in its name lies there, the threads that keep leases are dead, too.
"""

from __future__ import annotations

from typing import Any

from worker.__main__ import main

PIPES = "stall*"
KEEPERLESS = "stall-keeperless"


def _learn_to_stall() -> None:
    from app.settings import Settings
    from worker.keeper import Keeper
    from worker.lease import Job

    data_dir = Settings().data_dir
    start_stage, keep = Job.stage_started, Keeper._run

    def stage_started(job: Job, stage: Any) -> None:
        start_stage(job, stage)
        for pipe in data_dir.glob(PIPES):
            pipe.rename(data_dir / f"used-{pipe.name}").open("rb")

    def run(keeper: Keeper) -> None:
        if not (data_dir / KEEPERLESS).exists():
            keep(keeper)

    Job.stage_started, Keeper._run = stage_started, run  # type: ignore[method-assign]


if __name__ == "__main__":
    _learn_to_stall()
    main()
