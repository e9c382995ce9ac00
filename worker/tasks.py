"""The tasks. Each is a thin shell: the message says which job, the database says everything else."""

from __future__ import annotations

from functools import cache

from app.settings import Settings
from app.store.blobs import open_blobs
from app.store.database import Database
from app.store.ids import FusionId
from cogram_core.pipeline import fuse
from worker.celery_app import RUN_FUSION, app
from worker.lease import Ledger, Store
from worker.process import STOPPING, WORKER


def run_fusion(fusion_id: str) -> None:
    """Safe to deliver twice, late, or for a job that has ended."""
    run(_ledger(), FusionId(fusion_id))


def run(ledger: Ledger, fusion_id: FusionId) -> None:
    """One attempt at one fusion."""
    with ledger.lease(fusion_id) as job:
        if job is None:  # done, or held by a live worker
            return
        inputs = job.inputs  # lays the folder out
        job.finish(fuse(job.recipe, job.output, inputs=inputs, observer=job, journal=job.journal, earlier=job.earlier))


@cache
def _ledger() -> Ledger:
    """Opened in the child: the parent never has the database open when it forks."""
    settings = Settings()
    database = Database(settings.resolved_database_url)
    return Ledger(Store(database, open_blobs(settings, database)), settings, WORKER, STOPPING.is_set)


app.task(run_fusion, name=RUN_FUSION)
