"""Visits of whole layers, and what every visit needs: the loss of the network as it stands, limits, the record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cogram_core.evaluation.evaluator import Candidates, Evaluator
from cogram_core.evaluation.fast import FastEvaluator
from cogram_core.methods.cogram.decide import ROUNDING, Judge, Judgement, Thresholds
from cogram_core.methods.cogram.params import Params
from cogram_core.methods.contract import StageContext
from cogram_core.mixing import mix, plain_average, step_towards
from cogram_core.networks.layers import Layer, LayerValue, Level
from cogram_core.trace import Decision

STOPPED = "stopped: "
"""How the reason of the decision that ends a stage early begins."""


class StageEndsError(Exception):
    """The stage has taken all the decisions, or all the time, that it may."""


class Visitor:
    """Visits layers in turn. ``loss`` is the network's as it stands; ``accepted`` and ``sweep`` count over the stage."""

    def __init__(
        self,
        context: StageContext,
        params: Params,
        evaluator: FastEvaluator,
        guard: Evaluator | None,
        handicaps: Sequence[float],
    ) -> None:
        self.context = context
        self.params = params
        self.evaluator = evaluator
        self.judge = Judge(params, len(context.sources), handicaps)
        self.dtype = context.sources[0].read(context.network.names[0]).dtype
        self.loss = evaluator.loss()
        self.accepted = 0
        self.decisions = 0
        self.sweep = 0
        self._guard = guard
        self._touched: tuple[Layer, frozenset[int] | None] | None = None
        self._guard_loss: float | None = None
        self._started = context.recorder.elapsed()

    @property
    def enough(self) -> float:
        """What a loss has to be below in order to be accepted."""
        return self.loss * self.judge.below

    @property
    def left(self) -> int | None:
        """How many more decisions the stage may take; None: any number."""
        return None if self.params.max_decisions is None else self.params.max_decisions - self.decisions

    def visit(self, layer: Layer, thresholds: Thresholds | None) -> bool:
        """Decides on one layer: merged, rolled back, skipped, or with ``thresholds`` perhaps left to its neurons.

        Returns:
            Whether the layer is to be refined.
        """
        if past := self.context.past.upcoming(1):
            return self._again(layer, past[0])
        self.check_limits(layer, "layer")
        network = self.context.network
        if all(torch.equal(network.tensor(name), source.read(name).to(network.dtype))
               for source in self.context.sources for name in layer.tensors):  # fmt: skip
            self.record(layer, "layer", "skipped", "every source has what the network has")
            return False
        losses = self.evaluator.layer_losses(layer, self._candidates(layer))
        judgement = self.judge.judge(self.with_current(losses), "layer", 1, thresholds)
        if judgement.shares is None:
            action = "refined" if judgement.refine else "skipped"
            self.record(layer, "layer", action, judgement.reason, judgement)
            return judgement.refine
        self._merge(layer, judgement, judgement.shares)
        return False

    def with_current(self, losses: Sequence[float]) -> list[float]:
        """Losses of sources and extra candidates, with that of the unit as it stands, which is known, in its place."""
        found, count = list(losses), len(self.context.sources)
        if "current" in self.params.extras:
            found.insert(count, self.loss)
        return found

    def check_limits(self, layer: Layer, kind: Level, row: int | None = None, column: int | None = None) -> None:
        """Ends the stage, and says so in the trace, if nothing is left of what it may take.

        Raises:
            StageEndsError: then.
        """
        spent = self.context.recorder.elapsed() - self._started
        if self.left is not None and self.left <= 0:
            reason = f"{STOPPED}max_decisions {self.params.max_decisions} are taken"
        elif self.params.time_budget is not None and spent > self.params.time_budget:
            reason = f"{STOPPED}the time_budget of {self.params.time_budget:g} s is used up"
        else:
            return
        self.record(layer, kind, "skipped", reason, row=row, column=column)
        raise StageEndsError

    def approved(self, candidates: Candidates, place: int) -> float | None:
        """The holdout loss with this candidate, where it is asked and if it doesn't rise; −∞ where it isn't asked."""
        if self._guard is None:
            return -math.inf
        (loss,) = self._guard.losses(candidates.part(place, place + 1))
        return loss if loss <= self._guarded() * (1 + ROUNDING) else None

    def put(self, candidates: Candidates, place: int, approved: float | None) -> None:
        """Puts a candidate into the network; ``approved`` is the holdout loss then, None where it isn't known."""
        self._guard_loss = approved
        for evaluator in (self.evaluator, self._guard):
            if evaluator is not None:
                evaluator.moving(candidates, place)
        network, layer = self.context.network, candidates.layer
        row, value = int(candidates.rows[place]), candidates.numbers[place].to(network.dtype)
        if candidates.columns is None:
            network.assign_row(layer, row, value)
        else:
            network.assign_weight(layer, row, int(candidates.columns[place]), value)

    def settle(self, loss: float, accepted: int, approved: float) -> None:
        """Takes note that moves that are in the network already stay there."""
        self.loss, self._guard_loss = loss, approved
        self.accepted += accepted

    def touched(self, layer: Layer) -> frozenset[int] | None:
        """The rows of an embedding that the evaluation data read; None for any other layer."""
        if self._touched is None or self._touched[0] is not layer:
            self._touched = layer, self.evaluator.touched(layer)
        return self._touched[1]

    def changed(self, layer: Layer) -> None:
        """Tells the evaluators that a layer was changed in another way."""
        for evaluator in (self.evaluator, self._guard):
            if evaluator is not None:
                evaluator.changed(layer)

    def approved_layer(self, layer: Layer, value: LayerValue) -> float | None:
        """``approved`` for a whole layer."""
        if self._guard is None:
            return -math.inf
        (loss,) = self._guard.layer_losses(layer, [value])
        return loss if loss <= self._guarded() * (1 + ROUNDING) else None

    def _guarded(self) -> float:
        """The holdout loss of the network as it stands."""
        if self._guard_loss is None and self._guard is not None:
            self._guard_loss = self._guard.loss()
        return math.inf if self._guard_loss is None else self._guard_loss

    def record(
        self,
        layer: Layer,
        kind: Level,
        action: str,
        reason: str,
        judgement: Judgement | None = None,
        **facts: object,
    ) -> None:
        """Writes one decision down."""
        known = {} if judgement is None else {"loss_sources": judgement.losses, "spread": judgement.spread}
        if judgement is not None and judgement.shares is not None:
            known["shares"] = judgement.shares
        note = self.evaluator.note(layer)
        self.context.record(
            layer=layer.name,
            kind=kind,
            sweep=self.sweep,
            action=action,
            reason=f"{reason} ({note})" if note else reason,
            **{"loss_before": self.loss, **known, **facts},
        )
        self.decisions += 1

    def record_merged(
        self,
        layer: Layer,
        kind: Level,
        judgement: Judgement,
        place: tuple[int, int | None],
        step: float,
        loss: float,
    ) -> None:
        """Writes down that a neuron or weight was merged, and takes note of the loss then; ``place``: its row and column."""
        facts = {"row": place[0], "column": place[1], "step": step, "loss_after": loss}
        self.record(layer, kind, "merged", "the loss fell", judgement, **facts)
        self.loss = loss
        self.accepted += 1

    @property
    def guarded(self) -> bool:
        """Whether moves need the holdout loss's approval."""
        return self._guard is not None

    def taken(self, count: int, past: Sequence[Decision]) -> None:
        """Goes through recorded decisions again that left the network as it was, or are put into it by the caller."""
        self.context.past.take(count)
        for decision in past[:count]:
            self.decisions += 1
            if decision.reason.startswith(STOPPED):
                raise StageEndsError
            if decision.action == "merged" and decision.loss_after is not None:
                self.loss = decision.loss_after
                self.accepted += 1

    def _again(self, layer: Layer, decision: Decision) -> bool:
        """Takes a recorded decision over instead of taking it."""
        if decision.action == "merged" and decision.shares is not None and decision.step is not None:
            self._assign(layer, self._stepped(layer, self._target(layer, decision.shares), decision.step))
            self._guard_loss = None
        self.taken(1, [decision])
        return decision.action == "refined"

    def _candidates(self, layer: Layer) -> Iterator[dict[str, Tensor]]:
        """Each source's layer, one at a time, then the plain average where it is asked for."""
        for source in self.context.sources:
            yield {name: source.read(name) for name in layer.tensors}
        if "average" in self.params.extras:
            yield {name: self._average(name) for name in layer.tensors}

    def _average(self, name: str) -> Tensor:
        return plain_average((source.read(name) for source in self.context.sources), len(self.context.sources))

    def _merge(self, layer: Layer, judgement: Judgement, shares: tuple[float, ...]) -> None:
        """Step 5: the first step that lowers the loss enough is kept, else the layer stays byte for byte what it was."""
        target = self._target(layer, shares)
        forced = self.params.rollback == "fine"
        step = loss = math.nan
        for step in self.params.steps:
            value = self._stepped(layer, target, step)
            (loss,) = self.evaluator.layer_losses(layer, [value])
            approved = self.approved_layer(layer, value) if loss < self.enough else None
            if forced or approved is not None:
                self._assign(layer, value)
                self._guard_loss = approved
                reason = "the loss fell" if loss < self.enough else "kept: rollback is for finer levels"
                self.record(layer, "layer", "merged", reason, judgement, loss_after=loss, step=step)
                self.loss = loss
                self.accepted += 1
                return
        reason = self.rejected
        self.record(layer, "layer", "rolled_back", reason, judgement, loss_after=loss, step=step)

    @property
    def rejected(self) -> str:
        """Why a unit is rolled back."""
        also = " without raising the holdout loss" if self._guard is not None else ""
        return f"no step lowered the loss{also}"

    def _target(self, layer: Layer, shares: Sequence[float]) -> dict[str, Tensor]:
        """Σ aᵢ·Sᵢ[u] in float64, tensor by tensor and source by source."""
        return {name: mix(self._mixed(name), shares) for name in layer.tensors}

    def _mixed(self, name: str) -> Iterator[Tensor]:
        for source in self.context.sources:
            yield source.read(name)
        for extra in self.params.extras:
            yield self.context.network.tensor(name).to(self.dtype) if extra == "current" else self._average(name)

    def _stepped(self, layer: Layer, target: dict[str, Tensor], step: float) -> dict[str, Tensor]:
        """M[u] + t·(W − M[u]), rounded once, to the compute dtype."""
        network = self.context.network
        return {name: step_towards(network.tensor(name), target[name], step).to(self.dtype) for name in layer.tensors}

    def _assign(self, layer: Layer, value: dict[str, Tensor]) -> None:
        self.context.network.assign(layer, value)
        self.changed(layer)
