"""The trace of one attempt: a span for it, as a child of the request that posted the job, and one for each of its parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app import tracing
from app.store.jobs import Claim
from cogram_core.observer import StageInfo

if TYPE_CHECKING:
    from opentelemetry.trace import Span


class AttemptSpans:
    """Stages follow one another, so one is open at most; what an attempt leaves open ends with it."""

    def __init__(self, attempt: Span | None) -> None:
        self._attempt = attempt
        self._stage: Span | None = None

    def stage_started(self, stage: StageInfo) -> None:
        """A stage begins."""
        place: tracing.Attributes = {
            "cogram.stage": stage.index,
            "cogram.stages": stage.count,
            "cogram.method": stage.method,
        }
        self._stage = tracing.open_span(f"stage {stage.method}", place)

    def stage_finished(self) -> None:
        """It ended."""
        if self._stage is not None:
            self._stage.end()
            self._stage = None

    def broke_off(self, why: str) -> None:
        """The attempt ends without a result, maybe in the middle of a stage."""
        tracing.fail(self._stage, why)
        tracing.fail(self._attempt, why)
        self.stage_finished()


@contextmanager
def attempt_spans(claim: Claim) -> Iterator[AttemptSpans]:
    """Around everything that one attempt does; at the end, what was gathered is sent, as the process may end next."""
    tracing.start_tracing("worker")
    who: tracing.Attributes = {
        "cogram.fusion_id": claim.fusion_id,
        "cogram.attempt": claim.attempt,
        "cogram.worker": claim.worker,
    }
    try:
        with tracing.continued(claim.origin.traceparent), tracing.span("fusion attempt", who) as attempt:
            yield AttemptSpans(attempt)
    finally:
        tracing.flush_traces()
