"""Decides on a run of units that the evaluator visits by itself, one after the other, as if each were visited alone."""

from __future__ import annotations

from cogram_core.evaluation.visits import Did, Rules, Visited
from cogram_core.methods.cogram.decide import NOT_FINITE, Judgement, spread_of
from cogram_core.methods.cogram.exact import record_unmoved
from cogram_core.methods.cogram.visitor import Visitor
from cogram_core.methods.cogram.window import Window


def decide_run(visitor: Visitor, window: Window, rules: Rules) -> int:
    """Decides on all units of a window; gives how many those are."""
    skipped = window.unchanging(None)
    visited = visitor.evaluator.visit(window.run(skipped, visitor.loss), rules)
    moved = _put(visitor, window, visited)
    for unit, did in enumerate(visited.did):
        if did == Did.SKIPPED:
            record_unmoved(visitor, window, unit, None, skipped[unit], None)
            continue
        losses = visited.losses[unit]
        spread = spread_of(losses[: rules.sources])
        if did == Did.NOT_FINITE:
            judgement, last = Judgement(losses, spread, None, reason=NOT_FINITE), None
        else:
            judgement = Judgement(losses, spread, visited.shares[unit])
            last = visited.steps[unit], visited.after[unit]
        if unit in moved and last is not None:
            visitor.record_merged(window.layer, window.level, judgement, window.place(unit), *last)
        else:
            record_unmoved(visitor, window, unit, judgement, "", last)
    return window.count


def _put(visitor: Visitor, window: Window, visited: Visited) -> frozenset[int]:
    """Puts the merged units into the network; their values come from the shares as they would in a replay."""
    by_step: dict[float, list[int]] = {}
    for unit, did in enumerate(visited.did):
        if did == Did.MERGED:
            by_step.setdefault(visited.steps[unit], []).append(unit)
    for step, units in by_step.items():
        targets = window.targets(units, [visited.shares[unit] for unit in units])
        window.put_all(visitor.context.network, units, window.stepped(units, targets, step))
    return frozenset(unit for units in by_step.values() for unit in units)
