"""Kills parts and fills the disk, as the plan has it, while callers are at work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import psutil

from tests.chaos.disk import Disk
from tests.chaos.plan import Filling
from tests.chaos.stacks import Stack
from tests.chaos.tally import Tally

_LOOK_SECONDS = 0.05
_MOST_SECONDS = 30.0  # that a part which is just being started again is waited for


class Disturbance:
    """Runs in the main thread, which is the one that may start children; it keeps the stack running as well."""

    def __init__(self, stack: Stack, disk: Disk, tally: Tally, kills: Iterator[tuple[float, str]]) -> None:
        self._stack = stack
        self._disk = disk
        self._tally = tally
        self._kills = kills
        self._draw()

    def go_on(self, ended: Callable[[], float], fillings: Sequence[Filling], until: float) -> None:
        """Until all is ended, or the time is over; ``ended`` tells the share of deeds that are."""
        left = list(fillings)
        while ended() < 1.0 and time.monotonic() < until:
            self._step(_LOOK_SECONDS)
            if left and ended() >= left[0].share:
                self._fill(left.pop(0))

    def watch(self, seconds: float) -> None:
        """Keeps the stack running and harms nobody."""
        self._stack.keep_running()
        time.sleep(seconds)

    def _fill(self, filling: Filling) -> None:
        with self._tally.full_disk():
            self._disk.fill(filling.seconds, self._step)

    def _step(self, seconds: float) -> None:
        self.watch(seconds)
        if self._part is not None and time.monotonic() >= self._due:
            self._kill(self._part)

    def _draw(self) -> None:
        self._pause, self._part = next(self._kills, (0.0, None))
        self._due = time.monotonic() + self._pause
        self._last = self._due + _MOST_SECONDS

    def _kill(self, part: str) -> None:
        process = self._stack.part(part)
        if process is not None:
            self._end(process, part)
        elif time.monotonic() > self._last:
            self._tally.count(f"kills left out, as it was down: {part}")
            self._draw()
        else:  # not at once when it appears: every other kill of it would then meet its start
            self._due = time.monotonic() + self._pause

    def _end(self, process: psutil.Process, part: str) -> None:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            return
        self._tally.count(f"kills: {part}")
        self._tally.note(f"killed {part} ({process.pid})")
        self._draw()
