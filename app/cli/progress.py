"""The progress bar: an observer that draws."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from app.cli.interrupts import Interrupts
from cogram_core.observer import StageInfo

if TYPE_CHECKING:
    from cogram_core.trace import Decision


class ProgressBar:
    """One line a stage on standard error: how far it is, and how its decisions went."""

    def __init__(self, interrupts: Interrupts) -> None:
        self._interrupts = interrupts
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[decisions]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._accepted = 0
        self._trained = 0
        self._rolled_back = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._progress.stop()

    def stage_started(self, stage: StageInfo) -> None:
        """A new line."""
        self._progress.start()  # not before: an empty bar is an empty line
        self._accepted = self._trained = self._rolled_back = 0
        title = f"{stage.index + 1}/{stage.count} {stage.method}"
        self._task = self._progress.add_task(title, total=None, decisions="")

    def progress(self, stage: StageInfo, done: int, total: int) -> None:  # noqa: ARG002
        """Moves the bar."""
        self._update(completed=done, total=total)

    def decision(self, decision: Decision) -> None:
        """Counts."""
        self._accepted += decision.action in {"merged", "solved", "aligned"}
        self._trained += decision.action == "trained"
        self._rolled_back += decision.action == "rolled_back"
        done = f"{self._trained} trained" if self._trained else f"{self._accepted} accepted"
        self._update(decisions=f"{done}, {self._rolled_back} rolled back")

    def resumed(self, decisions: int) -> None:
        """One line, above the bar."""
        self._progress.console.print(f"resumed after {decisions} decisions of a run that was killed")

    def stage_finished(self, stage: StageInfo) -> None:  # noqa: ARG002
        """Fills the bar."""
        if self._task is not None:
            task = self._progress.tasks[-1]
            total = task.total if task.total is not None else 1
            self._update(completed=total, total=total)

    def should_stop(self) -> bool:
        """After Ctrl-C."""
        return self._interrupts.asked

    def _update(self, **fields: object) -> None:
        if self._task is not None:
            self._progress.update(self._task, **fields)  # type: ignore[arg-type]  # rich names its fields one by one
