"""Writes down a run's decisions as they are taken, or goes through those of an earlier run again. Free of torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from cogram_core.journal import Journal
from cogram_core.trace import Action, Decision, UnitKind


class Past:
    """The decisions of an earlier, killed run of the same recipe on the same inputs, to be gone through again.

    Read only as they are asked for. ``taken`` counts those that were taken over, ``left`` those that are still there.
    """

    def __init__(
        self,
        decisions: Iterable[Decision],
        count: int,
        again: Callable[[Decision], None],
        ended: Callable[[int], object],
    ) -> None:
        self.left = count
        self.taken = 0
        self._decisions = islice(decisions, count)
        self._again = again
        self._ended = ended
        self._next: deque[Decision] = deque()

    def upcoming(self, count: int) -> Sequence[Decision]:
        """The next decisions, ``count`` at most; fewer only where there are no more. They stay where they are."""
        self._next.extend(islice(self._decisions, max(0, count - len(self._next))))
        return tuple(islice(self._next, count))

    def take(self, count: int) -> None:
        """Takes the next ``count`` decisions over into this run, which goes on after them; the caller has applied them."""
        for decision in self.upcoming(count):
            self._next.popleft()
            self.left -= 1
            self.taken += 1
            self._again(decision)
            if self.left == 0:
                self._ended(self.taken)

    def forget(self) -> None:
        """Drops what is left: it ends inside something that has to be computed again from its start."""
        if self.left and self.taken:
            self._ended(self.taken)
        self._next.clear()
        self._decisions = islice((), 0)
        self.left = 0


class Recorder:
    """Numbers and times a run's decisions, writes them to the journal and tells ``listener`` of each.

    ``past`` has the first ``left`` of ``earlier``, an earlier run's decisions; ``resumed`` is told, once, how many of them
    were taken over.
    """

    def __init__(
        self,
        journal: Journal,
        listener: Callable[[Decision], None],
        earlier: Iterable[Decision] = (),
        left: int = 0,
        resumed: Callable[[int], object] = bool,
    ) -> None:
        self.count = 0
        self.past = Past(earlier, left, self._again, resumed)
        self._journal = journal
        self._listener = listener
        self._start = time.monotonic()

    def record(
        self,
        *,
        stage: int,
        method: str,
        layer: str,
        kind: UnitKind,
        action: Action,
        reason: str,
        sweep: int = 0,
        row: int | None = None,
        column: int | None = None,
        loss_before: float | None = None,
        loss_sources: tuple[float, ...] | None = None,
        spread: float | None = None,
        shares: tuple[float, ...] | None = None,
        step: float | None = None,
        loss_after: float | None = None,
        payload: bytes | None = None,
    ) -> None:
        """Adds the next row of the trace; what is left of the past is of no use from here on."""
        if self.past.left:
            self.past.forget()
        decision = Decision(
            seq=self.count,
            stage=stage,
            method=method,
            sweep=sweep,
            layer=layer,
            kind=kind,
            row=row,
            column=column,
            loss_before=loss_before,
            loss_sources=loss_sources,
            spread=spread,
            shares=shares,
            step=step,
            action=action,
            loss_after=loss_after,
            reason=reason,
            elapsed=self.elapsed(),
            payload=payload,
        )
        self._add(decision)

    def elapsed(self) -> float:
        """Seconds since the run began, those of the run that it goes on from included."""
        return time.monotonic() - self._start

    def _again(self, decision: Decision) -> None:
        self._start = time.monotonic() - decision.elapsed  # the clock goes on where the earlier run stopped
        self._add(decision)

    def _add(self, decision: Decision) -> None:
        self.count += 1
        self._journal.append(decision)
        self._listener(decision)
