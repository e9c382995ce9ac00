"""The order of visits: sweeps over the layers from output to input, until nothing more is gained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cogram_core.evaluation.evaluator import PlainEvaluator
from cogram_core.evaluation.prototypes import make_prototypes
from cogram_core.methods.cogram.decide import Thresholds, Visitor, neurons_of
from cogram_core.methods.cogram.params import Params
from cogram_core.methods.contract import StageContext
from cogram_core.networks.network import Layer, Unit, UnitValue
from cogram_core.stopping import stop_point

_Pass = Literal["layer", "neuron", "thresholds"]


def run(context: StageContext, params: Params) -> None:
    """Improves the network on prototypes of the evaluation data, level by level.

    Layers are visited from the output to the input, each layer's neurons in index order. A sweep is one pass over all
    layers; sweeps of a level repeat until one accepted nothing or gained less than ``min_gain``, or there were
    ``max_sweeps``.

    Source: arXiv:2512.03610; passes, backtracking and rollback at every level are this project's.
    """
    prototypes = make_prototypes(context.evaluation_data(), params.prototypes, context.seed, context.info.index)
    stop_point()
    visitor = Visitor(context, params, PlainEvaluator(context.network, prototypes))
    sweeps = Sweeps(context, params, visitor)
    if params.refinement == "thresholds":
        sweeps.repeat("thresholds", params.max_sweeps.layer)
        return
    sweeps.repeat("layer", params.max_sweeps.layer)
    if params.granularity == "neuron":
        sweeps.repeat("neuron", params.max_sweeps.neuron)


class Sweeps:
    """Runs and counts sweeps."""

    def __init__(self, context: StageContext, params: Params, visitor: Visitor) -> None:
        self._context = context
        self._params = params
        self._visitor = visitor
        self._layers = tuple(reversed(context.network.layers))
        self._count = 0

    def repeat(self, level: _Pass, most: int) -> None:
        """Sweeps of one level until there is nothing more to gain."""
        for _ in range(most):
            loss, accepted = self._visitor.loss, self._visitor.accepted
            self._sweep(level)
            self._context.milestone(f"sweep {self._count}")
            self._count += 1
            if self._visitor.accepted == accepted or loss - self._visitor.loss < self._params.min_gain:
                return

    def _sweep(self, level: _Pass) -> None:
        total = len(self._layers) if level != "neuron" else sum(layer.neurons for layer in self._layers)
        done = 0
        for layer in self._layers:
            # One layer of every source at a time.
            values = [{name: source.read(name) for name in layer.tensors} for source in self._context.sources]
            if level == "neuron":
                for unit in neurons_of(layer):
                    self._visit_neuron(unit, values)
                    done += 1
                    self._context.progress(done, total)
                continue
            thresholds = self._thresholds(layer) if level == "thresholds" else None
            if self._visitor.visit(Unit(layer), values, self._count, thresholds):
                for unit in neurons_of(layer):
                    self._visit_neuron(unit, values)
                    stop_point()
            done += 1
            self._context.progress(done, total)

    def _thresholds(self, layer: Layer) -> Thresholds | None:
        if self._params.granularity == "layer" or layer.neurons == 0:
            return None
        return Thresholds(self._params.tau_min, self._params.tau_max)

    def _visit_neuron(self, unit: Unit, values: Sequence[UnitValue]) -> None:
        """The finest level: decided as a whole, whatever its spread."""
        parts = [{name: unit.part_of(tensor) for name, tensor in value.items()} for value in values]
        self._visitor.visit(unit, parts, self._count, None)
