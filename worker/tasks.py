"""The task. A thin shell: the message says which job, the database says everything else."""

from __future__ import annotations

from app.store.ids import FusionId
from worker.celery_app import RUN_FUSION, app


def run_fusion(fusion_id: str) -> None:
    """Safe to deliver twice, late, or for a job that has ended."""
    from worker.fusing import (
        own_ledger,
        run,
    )  # torch with it: a worker of the io queue has this module, but never runs it

    run(own_ledger(), FusionId(fusion_id))


app.task(run_fusion, name=RUN_FUSION)
