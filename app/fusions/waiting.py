"""What a queued fusion waits for, if it may wait for ever: a worker of its queue, where there is none."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from functools import cached_property

from sqlalchemy.orm import Session

from app.store import jobs, workers
from app.store.models import Fusion, utc_now
from app.store.states import FusionState

# A worker that was just started, here or by an orchestrator, tells of itself within seconds.
PATIENCE = timedelta(seconds=15)
_OTHER_DEVICE = {"fusion.cuda": ("fusion.cpu", "cpu"), "fusion.cpu": ("fusion.cuda", "cuda")}


class Waiting:
    """Asked for one answer to a caller; looks for workers only if a fusion has been queued for a while."""

    def __init__(self, session: Session, lease_seconds: float) -> None:
        self._session = session
        self._silence = timedelta(seconds=lease_seconds)

    def of(self, fusion: Fusion) -> str | None:
        """In words, with the remedy; None for a fusion that is not queued, or will have its turn."""
        if fusion.state is not FusionState.QUEUED or utc_now() - fusion.updated_at < PATIENCE:
            return None
        queue = jobs.queue_of(fusion.recipe)
        if self._workers[queue]:
            return None
        other, device = _OTHER_DEVICE[queue]
        elsewhere = f", or cancel this fusion and post its recipe again with device: {device}"
        return (
            f"No worker serves the queue {queue}. Start one with `cogram worker --queues {queue}`"
            f"{elsewhere if self._workers[other] else ''}."
        )

    @cached_property
    def _workers(self) -> Counter[str]:
        return workers.serving(self._session, self._silence)
