"""Turns what the core tells into events worth keeping: every stage, and a few numbers a second in between."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from app.store.events import EventType
from cogram_core.observer import StageInfo

if TYPE_CHECKING:
    from cogram_core.trace import Decision

_STAGE = frozenset({"stage", "stages", "method"})
_COUNTED_AS = {
    "merged": "accepted",
    "solved": "accepted",
    "aligned": "accepted",
    "trained": "trained",
    "refined": "refined",
    "rolled_back": "rolled_back",
    "skipped": "skipped",
}


@dataclass(frozen=True)
class Written:
    """What is to be written: the events since the last time, and the sum of all that happened."""

    events: list[tuple[EventType, dict[str, Any]]]
    progress: dict[str, Any]


class EventWriter:
    """The core's side appends in microseconds; another thread takes what has gathered and writes it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._events: list[tuple[EventType, dict[str, Any]]] = []
        self._progress: dict[str, Any] = {}
        self._total: Counter[str] = Counter()
        self._batch: Counter[str] = Counter()
        self._steps: tuple[int, int] | None = None
        self._loss: float | None = None
        self._resumed: dict[str, int] = {}

    def stage_started(self, stage: StageInfo) -> None:
        """A stage begins."""
        with self._lock:
            self._close_batch()
            self._progress = _named(stage)
            self._events.append((EventType.STAGE_STARTED, _named(stage)))

    def progress(self, done: int, total: int) -> None:
        """Only the newest is kept until it is written."""
        with self._lock:
            self._steps = done, total

    def decision(self, decision: Decision) -> None:
        """Counted; the trace has each one."""
        with self._lock:
            self._batch[_COUNTED_AS[decision.action]] += 1
            if decision.loss_after is not None and math.isfinite(decision.loss_after):
                self._loss = decision.loss_after

    def resumed(self, decisions: int) -> None:
        """So many decisions were taken over from an earlier attempt."""
        with self._lock:
            self._close_batch()
            self._resumed = {"resumed_after": decisions}
            self._events.append((EventType.RESUMED, {"decisions": decisions}))

    def stage_finished(self, stage: StageInfo) -> None:
        """A stage ended."""
        with self._lock:
            self._close_batch()
            self._events.append((EventType.STAGE_FINISHED, _named(stage)))

    def take(self) -> Written | None:
        """Everything since the last time; None if nothing happened."""
        with self._lock:
            self._close_batch()
            if not self._events:
                return None
            taken, self._events = self._events, []
            return Written(taken, self._progress | self._resumed)

    def _close_batch(self) -> None:
        stage = {key: value for key, value in self._progress.items() if key in _STAGE}
        if self._batch:
            self._total.update(self._batch)
            counts = {name: self._batch[name] for name in _COUNTED_AS.values()}
            self._events.append((EventType.DECISIONS, {**stage, **counts, "loss_after": self._loss}))
            self._progress["decisions"] = {name: self._total[name] for name in _COUNTED_AS.values()}
            self._progress["loss_after"] = self._loss
            self._batch.clear()
        if self._steps is not None:
            done, total = self._steps
            self._events.append((EventType.PROGRESS, {**stage, "done": done, "total": total}))
            self._progress |= {"done": done, "total": total}
            self._steps = None


def _named(stage: StageInfo) -> dict[str, Any]:
    return {"stage": stage.index, "stages": stage.count, "method": stage.method}
