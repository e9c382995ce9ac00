"""Celery's prefork pool, except that it sees at once that a child has ended, and cares for the job of one that died."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from threading import Thread
from typing import Any

import structlog
from billiard.pool import EX_OK, EX_RECYCLE
from celery.concurrency.asynpool import AsynPool
from celery.concurrency.asynpool import Worker as Child
from celery.concurrency.prefork import TaskPool

from app.settings import Settings
from worker import recovery
from worker.process import DEADLINES

log = structlog.get_logger("worker.pool")

_MOST_SECONDS = 1.0
_NORMAL = frozenset({EX_OK, EX_RECYCLE})
# A fork of a process with torch in it, with its copied pages and its end, costs more than a small fusion. A child that
# has run so many jobs, or has at any time held so much more memory than it began with, makes room for a fresh one.
_JOBS_A_CHILD = 50
_GROWTH_KB = 64 * 1024


class _Child(Child):  # type: ignore[misc]  # Celery has no types
    def on_loop_start(self, pid: int) -> None:
        # Only a child knows with how much it begins: what its parent is told of itself counts its own parent's as well.
        self.max_memory_per_child = getrusage(RUSAGE_SELF).ru_maxrss + _GROWTH_KB
        super().on_loop_start(pid)


class _Pool(AsynPool):  # type: ignore[misc]
    Worker = _Child

    def _event_process_exit(self, hub: Any, process: Any) -> None:
        # A child that ends closes its pipe, which wakes us, a moment before it has an exit code. Celery looks for the
        # code once, and if it is too early forks the next child up to five seconds later: with one child a worker and
        # one job a child, that was seen before every second job on a busy machine.
        process.join(_MOST_SECONDS)
        DEADLINES.forget(process.index)
        if process.exitcode not in _NORMAL:
            recovery.on_child_exit(process.pid, process.exitcode)
        super()._event_process_exit(hub, process)

    def end_overdue(self, grace: float) -> None:
        """Kills each child whose lease ran out ``grace`` seconds ago: it can't even end itself."""
        for process in list(self._pool):
            deadline = DEADLINES.of(process.index)
            not_reaped = process._popen is not None and process._popen.returncode is None  # the number is still its own
            if deadline and not_reaped and time.monotonic() > deadline + grace:
                log.error("child killed, long after its lease ran out", child=process.pid)
                os.kill(process.pid, signal.SIGKILL)


class FusionPool(TaskPool):  # type: ignore[misc]
    """One process runs one job at a time, and small jobs one after the other."""

    Pool = _Pool

    def on_start(self) -> None:
        """Starts the children, and the watch over them. It has no lock that a fork could find held."""
        self.options["maxtasksperchild"] = 1 if _sees_gpu() else _JOBS_A_CHILD
        super().on_start()
        Thread(target=self._watch, args=(self._pool, Settings().lease_seconds), name="deadlines", daemon=True).start()

    def did_start_ok(self) -> bool:
        """Asked once. Celery ends a whole worker whose first child has died by then; its loop replaces it as any other."""
        return True

    @staticmethod
    def _watch(pool: _Pool, lease_seconds: float) -> None:
        while True:
            time.sleep(min(1.0, lease_seconds / 4))
            pool.end_overdue(grace=lease_seconds)


def _sees_gpu() -> bool:
    """Memory of a GPU is given back only by the process's end. CUDA itself may not be asked before the fork."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and Path("/dev/nvidiactl").exists()
