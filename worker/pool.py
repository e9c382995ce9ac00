"""Celery's prefork pool, except that it sees at once that a child has ended."""

from __future__ import annotations

from typing import Any

from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool

_MOST_SECONDS = 1.0


class _Pool(AsynPool):  # type: ignore[misc]  # Celery has no types
    def _event_process_exit(self, hub: Any, process: Any) -> None:
        # A child that ends closes its pipe, which wakes us, a moment before it has an exit code. Celery looks for the
        # code once, and if it is too early forks the next child up to five seconds later: with one child a worker and
        # one job a child, that was seen before every second job on a busy machine.
        process.join(_MOST_SECONDS)
        super()._event_process_exit(hub, process)


class FusionPool(TaskPool):  # type: ignore[misc]
    """One process a job."""

    Pool = _Pool
