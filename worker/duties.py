"""Steps that a process repeats, each in its own time, whatever becomes of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import structlog

log = structlog.get_logger("worker.duties")

_MOST_BACKOFF_SECONDS = 5.0


@dataclass
class Duty:
    """A step, and the seconds from one to the next."""

    step: Callable[[], object]
    every: float
    due: float = 0.0
    failures: int = 0


class Duties:
    """Repeats each duty in its own time; one that fails is tried again later and later, and never stops the others."""

    def __init__(self, duties: Sequence[Duty], outages: tuple[type[BaseException], ...]) -> None:
        self._duties = duties
        self._outages = outages
        self.last_round = time.time()  # for those who watch

    @property
    def failing(self) -> int:
        """How many duties could not be done when they were last tried."""
        return sum(duty.failures > 0 for duty in self._duties)

    def run(self) -> NoReturn:
        """Until the process ends."""
        while True:
            self.attend_due()
            time.sleep(max(0.0, min(duty.due for duty in self._duties) - time.monotonic()))

    def attend_due(self) -> None:
        """Each duty whose time has come; at first, all of them."""
        for duty in self._duties:
            if duty.due <= time.monotonic():
                self._attend(duty)
        self.last_round = time.time()

    def _attend(self, duty: Duty) -> None:
        try:
            duty.step()
        except self._outages as error:
            duty.failures += 1
            log.warning("out of reach", error=f"{type(error).__name__}: {error}", failures=duty.failures)
        except Exception:  # one duty's mistake must not end the others
            duty.failures += 1
            log.exception("duty failed", failures=duty.failures)
        else:
            duty.failures = 0
        backoff = min(0.2 * 2**duty.failures, _MOST_BACKOFF_SECONDS) if duty.failures else 0.0
        duty.due = time.monotonic() + max(duty.every, backoff)
