"""What a queued fusion waits for, if it may wait for ever: a worker of its queue, where there is none."""

from __future__ import annotations

import math
import time
from collections import Counter
from datetime import timedelta

from sqlalchemy.orm import Session

from app.queues import FUSION_CPU, FUSION_CUDA
from app.store import jobs, workers
from app.store.models import Fusion, utc_now
from app.store.states import FusionState

# A worker that was just started, here or by an orchestrator, tells of itself within seconds.
PATIENCE = timedelta(seconds=15)
# Every change of any fusion has all that wait for one look again, each in a thread of its own.
ANSWER_HOLDS = 1.0  # seconds
_OTHER_DEVICE = {FUSION_CUDA: (FUSION_CPU, "cpu"), FUSION_CPU: (FUSION_CUDA, "cuda")}


class Waiting:
    """Asked by all requests of a process; looks for workers now and then, and only if a fusion is queued for a while."""

    def __init__(self, lease_seconds: float) -> None:
        self._silence = timedelta(seconds=lease_seconds)
        self._said: tuple[float, Counter[str]] = -math.inf, Counter()  # replaced as one, so threads need no lock

    def of(self, session: Session, fusion: Fusion) -> str | None:
        """In words, with the remedy; None for a fusion that is not queued, or will have its turn."""
        if fusion.state is not FusionState.QUEUED or utc_now() - fusion.updated_at < PATIENCE:
            return None
        queue = jobs.queue_of(fusion.recipe)
        serving = self._workers(session)
        if serving[queue]:
            return None
        other, device = _OTHER_DEVICE[queue]
        elsewhere = f", or cancel this fusion and post its recipe again with device: {device}"
        return (
            f"No worker serves the queue {queue}. Start one with `cogram worker --queues {queue}`"
            f"{elsewhere if serving[other] else ''}."
        )

    def _workers(self, session: Session) -> Counter[str]:
        asked, serving = self._said
        if time.monotonic() - asked > ANSWER_HOLDS:
            serving = workers.serving(session, self._silence)
            self._said = time.monotonic(), serving
        return serving
