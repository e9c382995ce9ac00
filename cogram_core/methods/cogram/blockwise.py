"""Decides on blocks of units together: an approximation for networks whose units are too many to go one by one.

Every unit of a block is tried alone; those that would lower the loss are put in together. If the joint loss falls, all
stay; if not, each half is tried by itself, the second on what came of the first. So the loss still never rises, but a
unit's decision rests on the network at its block's beginning, and fewer evaluations are spent on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cogram_core.methods.cogram.decide import Judgement, Thresholds
from cogram_core.methods.cogram.exact import judge_units, record_unmoved
from cogram_core.methods.cogram.visitor import Visitor
from cogram_core.methods.cogram.window import Window

BLOCK = 32


@dataclass(frozen=True)
class _Move:
    """What would lower the loss, tried alone: the unit's new value, and by which step."""

    unit: int
    value: Tensor
    step: float
    loss: float


def decide_block(visitor: Visitor, window: Window, thresholds: Thresholds | None) -> tuple[int, str]:
    """Decides on all units of a block up to the first that is to be refined.

    Returns:
        How many units were decided on, and whether the last of them is to be ``refined``.
    """
    judged, skipped = judge_units(visitor, window, thresholds)
    refined = next((unit for unit, judgement in judged.items() if judgement.refine), None)
    moves, last = _improving(visitor, window, judged)
    start = visitor.loss
    joint: dict[int, tuple[float, int]] = {}
    _put_together(visitor, window, moves, joint)
    done = window.count if refined is None else refined + 1
    before = start
    for unit in range(done):
        if unit in joint:
            # What a group gained is written down at its first unit, so that the record's losses never rise.
            after, size = joint[unit]
            _record_merged(visitor, window, judged[unit], (before, after, size), last[unit][0], unit)
            before = after
        else:
            visitor_loss, visitor.loss = visitor.loss, before
            record_unmoved(visitor, window, unit, judged.get(unit), skipped.get(unit, ""), last.get(unit))
            visitor.loss = visitor_loss
    return done, "" if refined is None else "refined"


def _improving(
    visitor: Visitor, window: Window, judged: dict[int, Judgement]
) -> tuple[list[_Move], dict[int, tuple[float, float]]]:
    """Each unit's first step that would lower the loss, in order; and every unit's last step and loss."""
    pending = [unit for unit, judgement in judged.items() if judgement.shares is not None]
    moves: list[_Move] = []
    last: dict[int, tuple[float, float]] = {}
    for step in visitor.params.steps:
        if not pending:
            break
        targets = window.targets(pending, [judged[unit].shares or () for unit in pending])
        values = window.stepped(pending, targets, step)
        found = visitor.evaluator.losses(window.trying(pending, values))
        for unit, value, loss in zip(pending, values, found, strict=True):
            last[unit] = step, loss
            if loss < visitor.enough:
                moves.append(_Move(unit, value, step, loss))
        pending = [unit for unit in pending if not last[unit][1] < visitor.enough]
    return sorted(moves, key=lambda move: move.unit), last


def _put_together(
    visitor: Visitor, window: Window, moves: Sequence[_Move], joint: dict[int, tuple[float, int]]
) -> None:
    """Puts moves into the network if their joint loss falls, else each half of them by itself.

    ``joint`` gets, for every unit that stays moved, the loss after its group, and the group's size.
    """
    if not moves:
        return
    layer, network = window.layer, visitor.context.network
    rows = window.rows()
    kept = network.rows(layer, *rows)
    for move in moves:
        window.put(network, move.unit, move.value)
    visitor.changed(layer)
    (loss,) = visitor.evaluator.layer_losses(layer, [network.value(layer)])
    approved = visitor.approved_layer(layer, network.value(layer)) if loss < visitor.enough else None
    if approved is not None:
        for move in moves:
            joint[move.unit] = loss, len(moves)
        visitor.settle(loss, len(moves), approved)
        return
    for row, value in zip(range(*rows), kept, strict=True):
        network.assign_row(layer, row, value)
    visitor.changed(layer)
    if len(moves) > 1:
        _put_together(visitor, window, moves[: len(moves) // 2], joint)
        _put_together(visitor, window, moves[len(moves) // 2 :], joint)


def _record_merged(
    visitor: Visitor,
    window: Window,
    judgement: Judgement,
    losses: tuple[float, float, int],
    step: float,
    unit: int,
) -> None:
    before, after, size = losses
    row, column = window.place(unit)
    reason = "the loss fell" if size == 1 else f"the loss fell together with {size - 1} more"
    facts = {"row": row, "column": column, "step": step, "loss_before": before, "loss_after": after}
    visitor.record(window.layer, window.level, "merged", reason, judgement, **facts)
