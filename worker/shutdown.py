"""Celery's worker, except for how it stops.

SIGTERM and SIGINT: the running job lets go at once, and another worker goes on from its journal. SIGUSR2: the worker
drains, it takes no new job and ends when the running one has ended.
"""

from __future__ import annotations

import json
import os
import signal
import time
from types import FrameType

import celery.apps.worker
import structlog
from celery.apps.worker import Worker
from celery.worker import state
from sqlalchemy.exc import SQLAlchemyError

from worker import recovery
from worker.process import STOPPING

log = structlog.get_logger("worker.shutdown")


def _say(message: str, _file: object = None) -> None:
    """What Celery tells in its signal handlers, as a line of the log; locks must not be taken there, so it is written."""
    line = {"event": message.strip(), "logger": "celery.apps.worker", "level": "warning"}
    os.write(2, (json.dumps(line) + "\n").encode())


celery.apps.worker.safe_say = _say

_LOOK_SECONDS = 0.1


class FusionWorker(Worker):  # type: ignore[misc]  # Celery has no types
    """Asks the running job to let go and waits only until it has, not always the whole soft shutdown time.

    Celery's own wait sleeps through ``worker_soft_shutdown_timeout`` whatever happens meanwhile.
    """

    def install_platform_tweaks(self, worker: Worker) -> None:
        """Adds the signal to drain."""
        super().install_platform_tweaks(worker)
        signal.signal(signal.SIGUSR2, _drain)

    def terminate(self, in_sighandler: bool = False) -> None:
        """Tells of its end as after a warm shutdown; Celery doesn't after this one, which SIGTERM and SIGINT lead to."""
        super().terminate(in_sighandler)
        self._send_worker_shutdown()

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


def _drain(_signal: int, _frame: FrameType | None) -> None:
    state.should_stop = os.EX_OK  # what Celery's own handler of a warm shutdown does
