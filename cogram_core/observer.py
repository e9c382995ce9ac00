"""The core's one window to the outside: what it tells of its progress, and how it is asked to stop. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cogram_core.trace import Decision


@dataclass(frozen=True)
class StageInfo:
    """One stage of a run: its 0-based place, how many there are, and its method's name."""

    index: int
    count: int
    method: str


class Observer(Protocol):
    """What a run reports to. Calls come from one thread, in order, and should return quickly."""

    def stage_started(self, stage: StageInfo) -> None:
        """A stage begins."""

    def progress(self, stage: StageInfo, done: int, total: int) -> None:
        """``done`` of ``total`` steps of the stage's current pass are behind it."""

    def decision(self, decision: Decision) -> None:
        """One unit was merged, refined, rolled back or skipped."""

    def resumed(self, decisions: int) -> None:
        """The first ``decisions`` were taken over from an earlier, killed run; from here on the run decides itself."""

    def stage_finished(self, stage: StageInfo) -> None:
        """A stage ended."""

    def should_stop(self) -> bool:
        """True asks the run to end soon with ``FusionStopped``; asked between tensors and between decisions."""
        ...


class SilentObserver:
    """Hears everything, says nothing, never stops."""

    def stage_started(self, stage: StageInfo) -> None:
        """Ignored."""

    def progress(self, stage: StageInfo, done: int, total: int) -> None:
        """Ignored."""

    def decision(self, decision: Decision) -> None:
        """Ignored."""

    def resumed(self, decisions: int) -> None:
        """Ignored."""

    def stage_finished(self, stage: StageInfo) -> None:
        """Ignored."""

    def should_stop(self) -> bool:
        """Never."""
        return False
