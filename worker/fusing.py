"""One attempt at one fusion, from the claim to the result.

Imported by the parent of a worker that serves a fusion queue, before it forks; torch comes with it.
"""

from __future__ import annotations

from functools import cache

from app.settings import Settings
from app.store.blobs import open_blobs
from app.store.database import Database
from app.store.ids import FusionId
from cogram_core.pipeline import fuse
from worker.keeper import Holder
from worker.lease import Ledger, Store
from worker.process import DEADLINES, STOPPING, own_name


def run(ledger: Ledger, fusion_id: FusionId) -> None:
    """Safe to call twice, late, or for a job that has ended."""
    with ledger.lease(fusion_id) as job:
        if job is None:  # done, or held by a live worker
            return
        inputs = job.inputs  # lays the folder out
        fusion = fuse(
            job.recipe,
            job.output,
            inputs=inputs,
            observer=job,
            journal=job.journal,
            earlier=job.earlier,
            cache=ledger.cache,
            cache_bytes=ledger.cache_bytes,
        )
        job.finish(fusion)


def own_ledger() -> Ledger:
    """Made in the child that runs a job."""
    settings = Settings()
    holder = Holder(own_name(), STOPPING.is_set, DEADLINES.tell)
    return Ledger(Store(database(), open_blobs(settings, database())), settings, holder)


@cache
def database() -> Database:
    """The parent rehearses on it and closes it before it forks: children inherit what it knows, and no connection."""
    return Database(Settings().resolved_database_url)
