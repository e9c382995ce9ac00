"""A small fusion, and observers that record, stop or fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cogram_core.observer import StageInfo
from cogram_core.trace import Decision
from tests.core.factories import mlp, points, recipe_document, specialists

STAGES = [{"method": "fisher", "examples": 8}, {"method": "cogram", "granularity": "layer", "max_sweeps": {"layer": 1}}]


def document(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe over two small checkpoints below ``folder``."""
    given = recipe_document(folder, specialists(0, build=mlp), STAGES, evaluation=points(7, 20), holdout=points(8, 20))
    return given | changes


class Recording:
    """Writes down every call; answers ``should_stop`` with True from the given call on."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.asked = 0
        self._stop_at = stop_at

    def stage_started(self, stage: StageInfo) -> None:
        self.calls.append(("started", stage))

    def progress(self, stage: StageInfo, done: int, total: int) -> None:
        self.calls.append(("progress", stage, done, total))

    def decision(self, decision: Decision) -> None:
        self.calls.append(("decision", decision))

    def resumed(self, decisions: int) -> None:
        self.calls.append(("resumed", decisions))

    def stage_finished(self, stage: StageInfo) -> None:
        self.calls.append(("finished", stage))

    def should_stop(self) -> bool:
        self.asked += 1
        return self._stop_at is not None and self.asked > self._stop_at


class Failing(Recording):
    """Raises at the given call of any kind."""

    def __init__(self, fail_at: int) -> None:
        super().__init__()
        self._left = fail_at

    def __getattribute__(self, name: str) -> Any:
        if name in {"stage_started", "progress", "decision", "resumed", "stage_finished", "should_stop"}:
            if self._left == 0:
                raise KeyboardInterrupt(name)
            self._left -= 1
        return super().__getattribute__(name)


def entries(folder: Path) -> list[str]:
    """What stands in a folder, hidden things included."""
    return sorted(path.name for path in folder.iterdir())
