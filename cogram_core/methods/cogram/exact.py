"""Decides on a window's units as if each were visited alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cogram_core.evaluation.evaluator import Candidates
from cogram_core.methods.cogram.decide import Judgement, Thresholds, siblings_of
from cogram_core.methods.cogram.visitor import Visitor
from cogram_core.methods.cogram.window import Window


@dataclass(frozen=True)
class Accepted:
    """The first unit of a window whose move is accepted."""

    unit: int
    candidates: Candidates
    place: int
    step: float
    loss: float
    approved: float


def decide_in_order(visitor: Visitor, window: Window, thresholds: Thresholds | None) -> tuple[int, str]:
    """Decides on the units up to the first that is accepted or refined.

    Returns:
        How many units were decided on, and what was done with the last of them, if that changed anything.
    """
    judged, skipped = judge_units(visitor, window, thresholds)
    refined = next((unit for unit, judgement in judged.items() if judgement.refine), None)
    mergeable = [unit for unit, judgement in judged.items() if judgement.shares is not None]
    accepted, last = _first_accepted(visitor, window, judged, mergeable)
    end = accepted.unit if accepted is not None else refined
    done = window.count if end is None else end + 1
    for unit in range(done):
        if accepted is not None and unit == accepted.unit:
            _accept(visitor, window, judged[unit], accepted)
        else:
            record_unmoved(visitor, window, unit, judged.get(unit), skipped.get(unit, ""), last.get(unit))
    if accepted is not None:
        return done, "merged"
    return done, "" if refined is None else "refined"


def judge_units(
    visitor: Visitor, window: Window, thresholds: Thresholds | None
) -> tuple[dict[int, Judgement], dict[int, str]]:
    """Judgements up to the first unit that is to be refined, in order; and why other units aren't evaluated at all."""
    skipped = window.unchanging(visitor.touched(window.layer))
    active = [unit for unit in range(window.count) if unit not in skipped]
    if not active:
        return {}, skipped
    found = visitor.evaluator.losses(window.sources_of(active))
    siblings = siblings_of(window.layer, window.level)
    judged = {}
    for place, unit in enumerate(active):
        losses = visitor.with_current(found[place :: len(active)])
        judged[unit] = visitor.judge.judge(losses, window.level, siblings, thresholds)
        if judged[unit].refine:
            break
    return judged, skipped


def record_unmoved(
    visitor: Visitor,
    window: Window,
    unit: int,
    judgement: Judgement | None,
    skipped: str,
    last: tuple[float, float] | None,
) -> None:
    """Writes down that a unit was skipped, refined or rolled back; ``last`` is the last step tried and its loss."""
    row, column = window.place(unit)
    if judgement is None:
        visitor.record(window.layer, window.level, "skipped", skipped, row=row, column=column)
    elif last is None:
        action = "refined" if judgement.refine else "skipped"
        visitor.record(window.layer, window.level, action, judgement.reason, judgement, row=row, column=column)
    else:
        facts = {"row": row, "column": column, "step": last[0], "loss_after": last[1]}
        visitor.record(window.layer, window.level, "rolled_back", visitor.rejected, judgement, **facts)


def _first_accepted(
    visitor: Visitor, window: Window, judged: dict[int, Judgement], mergeable: list[int]
) -> tuple[Accepted | None, dict[int, tuple[float, float]]]:
    """The first unit with a step that is accepted, at its first such step; and each other unit's last step and loss.

    All units try their whole way together. From then on only those before the first accepted one matter: they try all
    their shorter steps together.
    """
    last: dict[int, tuple[float, float]] = {}
    if not mergeable:
        return None, last
    targets = window.targets(mergeable, [judged[unit].shares or () for unit in mergeable])
    whole, *shorter = visitor.params.steps
    accepted = _try(visitor, window, mergeable, targets, [whole], last)
    pending = mergeable if accepted is None else mergeable[: mergeable.index(accepted.unit)]
    if pending and shorter:
        accepted = _try(visitor, window, pending, targets[: len(pending)], shorter, last) or accepted
    return accepted, last


def _try(
    visitor: Visitor,
    window: Window,
    units: list[int],
    targets: Tensor,
    steps: list[float],
    last: dict[int, tuple[float, float]],
) -> Accepted | None:
    """The first unit of which one of the steps is accepted, with the first such step."""
    values = torch.stack([window.stepped(units, targets, step) for step in steps], dim=1).flatten(0, 1)
    candidates = window.trying([unit for unit in units for _ in steps], values)
    tries = [(unit, step) for unit in units for step in steps]
    for place, ((unit, step), loss) in enumerate(zip(tries, visitor.evaluator.losses(candidates), strict=True)):
        last[unit] = step, loss
        if loss < visitor.enough and (approved := visitor.approved(candidates, place)) is not None:
            return Accepted(unit, candidates, place, step, loss, approved)
    return None


def _accept(visitor: Visitor, window: Window, judgement: Judgement, accepted: Accepted) -> None:
    place = window.place(accepted.unit)
    visitor.record_merged(window.layer, window.level, judgement, place, accepted.step, accepted.loss)
    visitor.put(accepted.candidates, accepted.place, accepted.approved)
