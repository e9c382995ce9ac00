"""The order of visits: sweeps over the layers from output to input, until nothing more is gained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.fast import FastEvaluator
from cogram_core.evaluation.prototypes import make_prototypes
from cogram_core.methods.cogram.decide import Thresholds
from cogram_core.methods.cogram.params import LEVELS, Params
from cogram_core.methods.cogram.visitor import StageEndsError, Visitor
from cogram_core.methods.cogram.windows import Windows
from cogram_core.methods.contract import StageContext
from cogram_core.networks.layers import Layer, Level
from cogram_core.stopping import stop_point

_AUTO_POINTS = (0.1, 0.9)


def run(context: StageContext, params: Params) -> None:
    """Improves the network on prototypes of the evaluation data, level by level.

    Layers are visited from the output to the input, each layer's neurons in index order, each neuron's weights in index
    order. A sweep is one pass over all layers; sweeps of a level repeat until one accepted nothing or gained less than
    ``min_gain``, or there were ``max_sweeps``. A stage that may go below layer level runs the network in float64, so that
    the last digits of a loss, which depend on how candidates are batched, don't reach a decision.

    Source: arXiv:2512.03610; passes, backtracking and rollback at every level are this project's.
    """
    prototypes = make_prototypes(
        context.evaluation_data(), params.prototypes, context.seed, context.info.index, context.network
    )
    stop_point()
    network, dtype = context.network, context.network.dtype

    def milestone(label: str) -> None:
        with network.precision(dtype):
            context.milestone(label)

    with network.precision(dtype if params.granularity == "layer" else torch.float64):
        handicaps = _handicaps(context, params, prototypes)
        evaluator = FastEvaluator(network, prototypes)
        guard = FastEvaluator(network, context.holdout_data()) if params.unit_guard else None
        visitor = Visitor(replace(context, milestone=milestone), params, evaluator, guard, handicaps)
        try:
            Sweeps(visitor, _thresholds(visitor)).run()
        except StageEndsError:
            milestone(f"sweep {visitor.sweep}, stopped early")


def _handicaps(context: StageContext, params: Params, data: Dataset) -> list[float]:
    """κ·(L(Sᵢ) − meanⱼ L(Sⱼ)) of each source, in nats; a loss that isn't finite takes no part."""
    if params.competence == 0:
        return [0.0] * len(context.sources)
    network = context.network
    dtype = context.sources[0].read(network.names[0]).dtype  # whose numbers these are, though the network be wider
    kept = {name: network.tensor(name).to(dtype, copy=True) for name in network.names}
    losses = []
    for source in context.sources:
        network.load(source.read)
        losses.append(FastEvaluator(network, data).loss())
    network.load(kept.__getitem__)
    finite = [loss for loss in losses if math.isfinite(loss)]
    mean = math.fsum(finite) / len(finite) if finite else 0.0
    return [params.competence * (loss - mean) if math.isfinite(loss) else 0.0 for loss in losses]


def _thresholds(visitor: Visitor) -> Thresholds:
    """τ_min and τ_max of the layers: as given, or the 10 % and 90 % points of the spreads of a dry pass."""
    params, context = visitor.params, visitor.context
    if params.tau == "given" or params.refinement == "passes":
        return Thresholds(params.tau_min, params.tau_max)
    spreads = []
    for layer in reversed(context.network.layers):
        stop_point()
        values = ({name: source.read(name) for name in layer.tensors} for source in context.sources)
        losses = visitor.evaluator.layer_losses(layer, values)
        spreads.append(max(losses) - min(losses))
    finite = [spread for spread in spreads if math.isfinite(spread)]
    low, high = np.quantile(finite, _AUTO_POINTS) if finite else (0.0, math.inf)
    return Thresholds(float(low), float(high) if math.isfinite(high) else None)


class Sweeps:
    """Runs and counts sweeps."""

    def __init__(self, visitor: Visitor, thresholds: Thresholds) -> None:
        self._visitor = visitor
        self._params = visitor.params
        self._layers = tuple(reversed(visitor.context.network.layers))
        self._given = thresholds

    def run(self) -> None:
        """All sweeps of all levels.

        Raises:
            StageEndsError: if the stage's decisions or time are used up.
        """
        most = self._params.max_sweeps
        if self._params.refinement == "thresholds":
            self._repeat(self._by_thresholds, most.layer)
            return
        for level in LEVELS[: self._params.finest + 1]:
            self._repeat(
                self._layer_by_layer if level == "layer" else partial(self._by_units, level), getattr(most, level)
            )

    def _repeat(self, sweep: Callable[[], None], most: int) -> None:
        """Sweeps of one level until there is nothing more to gain."""
        visitor = self._visitor
        for _ in range(most):
            loss, accepted = visitor.loss, visitor.accepted
            sweep()
            visitor.context.milestone(f"sweep {visitor.sweep}")
            visitor.sweep += 1
            if visitor.accepted == accepted or loss - visitor.loss < self._params.min_gain:
                return

    def _layer_by_layer(self) -> None:
        for done, layer in enumerate(self._layers):
            self._visitor.visit(layer, None)
            self._visitor.context.progress(done + 1, len(self._layers))

    def _by_units(self, level: Level) -> None:
        """Every neuron, or every weight, of every layer that has any."""
        counts = [layer.neurons * (layer.width if level == "weight" else 1) for layer in self._layers]
        done, total = 0, sum(counts)
        for layer, count in zip(self._layers, counts, strict=True):

            def progress(units: int, before: int = done) -> None:
                self._visitor.context.progress(before + units, total)

            if count:
                Windows(self._visitor, layer, level, _never).visit(0, count, None, progress)
            done += count

    def _by_thresholds(self) -> None:
        """One pass in which each spread decides whether its unit is left to finer ones."""
        for done, layer in enumerate(self._layers):
            finer = self._params.finest > 0 and layer.neurons > 0
            if self._visitor.visit(layer, self._given if finer else None):
                self._refine_layer(layer)
            self._visitor.context.progress(done + 1, len(self._layers))

    def _refine_layer(self, layer: Layer) -> None:
        """The neurons of a layer, each merged as a whole or left to its weights."""
        finer, width = self._params.finest > 1, layer.width
        shared = self._params.tau_scale == "share"
        thresholds = self._given.shared(layer.neurons) if shared else self._given

        def refine(row: int) -> None:
            Windows(self._visitor, layer, "weight", _never).visit(row * width, (row + 1) * width, None, _unheard)

        windows = Windows(self._visitor, layer, "neuron", refine)
        windows.visit(0, layer.neurons, thresholds if finer else None, _unheard)


def _never(row: int) -> None:
    raise AssertionError(f"neuron {row} was to be refined without thresholds")


def _unheard(_: int) -> None:
    stop_point()
