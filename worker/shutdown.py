"""Celery's worker, except for how it waits before a soft shutdown."""

from __future__ import annotations

import time

import structlog
from celery.apps.worker import Worker
from sqlalchemy.exc import SQLAlchemyError

from worker import recovery
from worker.process import STOPPING

log = structlog.get_logger("worker.shutdown")

_LOOK_SECONDS = 0.1


class FusionWorker(Worker):  # type: ignore[misc]  # Celery has no types
    """Asks the running job to let go and waits only until it has, not always the whole soft shutdown time.

    Celery's own wait sleeps through ``worker_soft_shutdown_timeout`` whatever happens meanwhile.
    """

    def wait_for_soft_shutdown(self) -> None:
        """Returns once no child holds a lease, at the latest after ``worker_soft_shutdown_timeout``."""
        STOPPING.set()
        end = time.monotonic() + self.app.conf.worker_soft_shutdown_timeout
        while time.monotonic() < end and self._holds_a_job():
            time.sleep(_LOOK_SECONDS)

    def _holds_a_job(self) -> bool:
        try:
            return bool(recovery.held_jobs())
        except SQLAlchemyError as error:
            log.warning("can't see whether a job is still held", error=str(error))
            return True
