"""Visits of neurons and weights: several at once, decided as if one by one.

A window is a run of units in order. All of them are scored under the network as it stands, and the decisions are taken
in order up to the first that changes anything; what comes after it was speculation, and starts a new window. So every
decision rests on the very network that it would have met alone. How long windows are depends on nothing but the network
and the decisions so far, so that a resumed run cuts the same ones.

Where the evaluator can visit units by itself, nothing is speculation: a window is then just a number of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import takewhile

from cogram_core.methods.cogram.blockwise import BLOCK, decide_block
from cogram_core.methods.cogram.decide import Thresholds, siblings_of
from cogram_core.methods.cogram.exact import decide_in_order
from cogram_core.methods.cogram.runs import decide_run
from cogram_core.methods.cogram.visitor import STOPPED, Visitor
from cogram_core.methods.cogram.window import Reader, Window
from cogram_core.networks.layers import Layer, Level
from cogram_core.trace import Decision

_MOST = {"neuron": 64, "weight": 512}
# In µs: what a window costs beside its candidates, spread over those of a unit; a candidate; a number of it. They decide on
# speed only, and not sharply: a third or four times the first changed the sweeps of bench.evaluator by less than its noise.
_WINDOW, _CANDIDATE, _NUMBER = 200.0, 15.0, 6e-4


class Windows:
    """Visits the units of one layer and level, or some of them, window by window."""

    def __init__(self, visitor: Visitor, layer: Layer, level: Level, refine: Callable[[int], None]) -> None:
        """``refine`` is called with the row of a neuron that is to be looked at more finely."""
        self._visitor = visitor
        self._layer = layer
        self._level: Level = level
        self._refine = refine
        self._reader = Reader(visitor, layer)
        effort = visitor.evaluator.open(layer)
        self._cost = 0.0 if effort is None else _WINDOW / (_CANDIDATE + _NUMBER * effort)
        self._changes = self._visited = 0

    @property
    def _size(self) -> int:
        """As many units as are cheapest a decision, when such a share of them changes something as did so far.

        A window of K costs c + K units' work and decides on about K − pK²/2 of them; the least cost a decision is near
        K = √(2c/p).
        """
        share = (self._changes + 1) / (self._visited + 3)
        return max(1, min(_MOST[self._level], round(math.sqrt(2 * self._cost / share))))

    def visit(self, first: int, last: int, thresholds: Thresholds | None, progress: Callable[[int], None]) -> None:
        """Decides on units first to last − 1; ``progress`` is called with how many of them are done."""
        at, run = first, self._run(thresholds)
        while at < last:
            self._check_limits(at)
            size = run or (BLOCK if self._visitor.params.mode == "blockwise" else self._size)
            left = self._visitor.left
            window = self._reader.window(self._level, at, min(last, at + (size if left is None else min(size, left))))
            at += self._in_a_run(window) if run else self._window(window, thresholds)
            progress(at - first)

    def _run(self, thresholds: Thresholds | None) -> int | None:
        """How many units the evaluator visits by itself at once; None: it doesn't."""
        visitor = self._visitor
        if thresholds is not None or visitor.guarded or visitor.params.mode == "blockwise":
            return None
        losses = len(visitor.context.sources) + len(visitor.params.extras) + len(visitor.params.steps)
        return visitor.evaluator.most_visits(self._layer, self._level, losses)

    def _in_a_run(self, window: Window) -> int:
        past = self._visitor.context.past.upcoming(window.count)
        # A stage that stopped early says so in the next row.
        known = list(takewhile(lambda decision: not decision.reason.startswith(STOPPED), past))
        if known:
            self._again(window, known)
            return len(known)
        siblings = siblings_of(self._layer, self._level)
        return decide_run(self._visitor, window, self._visitor.judge.rules(self._level, siblings))

    def _check_limits(self, at: int) -> None:
        past = self._visitor.context.past.upcoming(1)
        if past and past[0].reason.startswith(STOPPED):
            self._visitor.taken(1, past)
        elif not past:
            row, column = (at, None) if self._level == "neuron" else divmod(at, self._layer.width)
            self._visitor.check_limits(self._layer, self._level, row, column)

    def _window(self, window: Window, thresholds: Thresholds | None) -> int:
        """Decides on a window's units up to the first that changes anything; gives how many those are."""
        count = window.count
        past = self._visitor.context.past.upcoming(count)
        blockwise = self._visitor.params.mode == "blockwise"
        ends = ("refined",) if blockwise else ("merged", "refined")
        end = next((place + 1 for place, decision in enumerate(past) if decision.action in ends), None)
        if end is not None or len(past) == count:
            done = end or count
            last: str = past[done - 1].action
            self._again(window, past[:done])
        else:
            self._visitor.context.past.forget()
            decide = decide_block if blockwise else decide_in_order
            done, last = decide(self._visitor, window, thresholds)
        self._visited += done
        self._changes += last in ends
        if last == "refined":
            self._refine(window.place(done - 1)[0])
        return done

    def _again(self, window: Window, past: Sequence[Decision]) -> None:
        """Takes recorded decisions over instead of taking them."""
        merged = [place for place, decision in enumerate(past) if decision.action == "merged"]
        if merged:
            targets = window.targets(merged, [past[place].shares or () for place in merged])
            for place, target in zip(merged, targets, strict=True):
                value = window.stepped([place], target[None], past[place].step or 0.0)
                self._visitor.put(window.trying([place], value), 0, None)
        self._visitor.taken(len(past), past)
