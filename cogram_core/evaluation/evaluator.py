"""Losses of a network under exchanged units.

``Evaluator`` is what CoGraM asks; ``PlainEvaluator`` answers with one full forward pass a question. It is the reference
that any faster evaluator has to agree with, decision for decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.losses import example_losses, weighted_mean
from cogram_core.networks.network import Network, Unit, UnitValue
from cogram_core.stopping import stop_point

# Examples a forward pass. A constant of the code, so that results don't depend on the memory at hand.
BATCH = 1024


class Evaluator(Protocol):
    """Mean losses on one set of evaluation examples, in nats; infinity where a loss is not a number."""

    def loss(self) -> float:
        """L(M) of the network as it stands."""
        ...

    def losses(self, unit: Unit, candidates: Sequence[UnitValue]) -> list[float]:
        """L(M[u ← W]) for each candidate value W of a unit; the network is left as it was."""
        ...

    def assign(self, unit: Unit, value: UnitValue) -> None:
        """Makes M[u ← W] the network."""
        ...


class PlainEvaluator:
    """One full forward pass a loss: slow and obviously right."""

    def __init__(self, network: Network, dataset: Dataset) -> None:
        self._network = network
        self._dataset = dataset

    def loss(self) -> float:
        """See ``Evaluator.loss``."""
        data = self._dataset
        losses = example_losses(data.loss, all_logits(self._network, data.inputs), data.targets)
        mean = weighted_mean(losses, data.weights)
        return mean if math.isfinite(mean) else math.inf

    def losses(self, unit: Unit, candidates: Sequence[UnitValue]) -> list[float]:
        """See ``Evaluator.losses``."""
        kept = self._network.value(unit)
        results = []
        for candidate in candidates:
            self._network.assign(unit, candidate)
            results.append(self.loss())
        self._network.assign(unit, kept)
        return results

    def assign(self, unit: Unit, value: UnitValue) -> None:
        """See ``Evaluator.assign``."""
        self._network.assign(unit, value)


def all_logits(network: Network, inputs: Tensor) -> Tensor:
    """Class scores (N, C) of inputs (N, ...), batch by batch."""
    found = []
    for batch in torch.split(inputs, BATCH):
        stop_point()
        found.append(network.logits(batch))
    return torch.cat(found)
