"""One visit of one unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cogram_core.evaluation.evaluator import Evaluator
from cogram_core.methods.cogram.params import Params
from cogram_core.methods.contract import StageContext
from cogram_core.mixing import keep_common, mix, softmax_shares, step_towards
from cogram_core.networks.network import Layer, Unit, UnitValue


@dataclass(frozen=True)
class Thresholds:
    """Spreads in nats between which a unit is merged as a whole; None: no limit."""

    low: float
    high: float | None

    def refine(self, spread: float) -> str | None:
        """Why a unit of this spread should be looked at more finely, if it should."""
        if spread < self.low:
            return "spread below tau_min: uncertain"
        if self.high is not None and spread > self.high:
            return "spread above tau_max: too coarse"
        return None


class Visitor:
    """Visits units in turn and keeps the loss of the network as it stands."""

    def __init__(self, context: StageContext, params: Params, evaluator: Evaluator) -> None:
        self._context = context
        self._params = params
        self._evaluator = evaluator
        self._network = context.network
        self.loss = evaluator.loss()
        self.accepted = 0

    def visit(self, unit: Unit, sources: Sequence[UnitValue], sweep: int, thresholds: Thresholds | None) -> bool:
        """Decides on one unit: merged, rolled back, skipped, or with ``thresholds`` perhaps left to its children.

        Args:
            unit: what to decide on.
            sources: each source's value of the unit.
            sweep: counted over the stage, for the trace.
            thresholds: where the unit may be refined; None where it must be decided as a whole.

        Returns:
            Whether the unit is to be refined.
        """
        current = self._network.value(unit)
        before = self.loss
        if all(_equal(current, source) for source in sources):
            self._record(unit, sweep, "skipped", "every source has what the network has", loss_before=before)
            return False
        losses = self._evaluator.losses(unit, sources)
        finite = [loss for loss in losses if math.isfinite(loss)]
        spread = max(finite) - min(finite) if len(finite) == len(losses) else math.inf
        facts = {"loss_before": before, "loss_sources": tuple(losses), "spread": spread}
        if not finite:
            self._record(unit, sweep, "skipped", "no source gives a finite loss", **facts)
            return False
        if thresholds is not None and (reason := thresholds.refine(spread)) is not None:
            self._record(unit, sweep, "refined", reason, **facts)
            return True
        siblings = unit.layer.neurons if unit.row is not None else 1
        shares = softmax_shares(losses, self._params.steepness_at(unit.kind, siblings))
        self._merge(unit, sweep, current, mix_unit(sources, shares), {**facts, "shares": shares})
        return False

    def _merge(self, unit: Unit, sweep: int, current: UnitValue, target: UnitValue, facts: dict[str, object]) -> None:
        """Step 5: the first step that lowers the loss enough is kept, else the unit stays byte for byte what it was."""
        enough = self.loss * (1 - self._params.tolerance)
        forced = self._params.rollback == "fine" and unit.row is None
        step = loss = math.nan
        for step in self._params.steps:
            candidate = step_unit(current, target, step)
            loss = self._evaluator.losses(unit, [candidate])[0]
            if loss < enough or forced:
                self._evaluator.assign(unit, candidate)
                self.loss = loss
                self.accepted += 1
                reason = "the loss fell" if loss < enough else "kept: rollback is for finer levels"
                self._record(unit, sweep, "merged", reason, loss_after=loss, step=step, **facts)
                return
        self._record(unit, sweep, "rolled_back", "no step lowered the loss", loss_after=loss, step=step, **facts)

    def _record(self, unit: Unit, sweep: int, action: str, reason: str, **facts: object) -> None:
        self._context.record(
            layer=unit.layer.name, kind=unit.kind, row=unit.row, sweep=sweep, action=action, reason=reason, **facts
        )


def _equal(value: UnitValue, other: UnitValue) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in value.items())


def mix_unit(sources: Sequence[UnitValue], shares: Sequence[float]) -> dict[str, Tensor]:
    """Σ aᵢ·Sᵢ[u] in float64, tensor by tensor."""
    mixed = {}
    for name in sources[0]:
        values = [source[name] for source in sources]
        mixed[name] = keep_common(values, mix(values, shares))
    return mixed


def step_unit(current: UnitValue, target: UnitValue, step: float) -> dict[str, Tensor]:
    """M[u] + t·(W − M[u]), rounded once, to the current value's dtype."""
    return {name: step_towards(value, target[name], step).to(value.dtype) for name, value in current.items()}


def neurons_of(layer: Layer) -> list[Unit]:
    """A layer's neurons in index order; none where it has a layer level only."""
    return [Unit(layer, row) for row in range(layer.neurons)]
