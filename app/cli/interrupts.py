"""Ctrl-C and SIGTERM, for commands that compute: the first asks the run to stop, the second ends it at once."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Self

import typer

from app.cli.failures import tell
from cogram_core.errors import FusionStopped


class Interrupts:
    """While this context is open, ``asked`` tells whether somebody wants the run to end."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[signal.Signals, signal.Handlers | object] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself gave
        if isinstance(error, FusionStopped) and self._signal is not None:
            tell("stopped; nothing was written")
            raise typer.Exit(128 + self._signal) from error

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise SystemExit(128 + number)
        self._signal = number
