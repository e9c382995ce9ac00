"""Losses of a network under exchanged layers, neurons and weights.

``Evaluator`` is what CoGraM asks. ``PlainEvaluator`` answers with one full forward pass a question; ``FastEvaluator`` (in
``fast``) gives the same answers sooner, and asks the plain one whether it may.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.losses import example_losses, weighted_mean
from cogram_core.networks.layers import Layer, LayerValue
from cogram_core.networks.network import Network
from cogram_core.stopping import stop_point

# Examples a forward pass; fewer where they have more numbers, or tokens, of each of which a network makes hundreds of
# numbers, than these. Constants of the code, so that results don't depend on the memory at hand.
BATCH = 1024
_NUMBERS, _TOKENS = 2**22, 2**13


@dataclass(frozen=True, eq=False)
class Pool:
    """Neurons of one layer, (M, width), which will be tried in several turns, so that a part of it may be done once."""

    values: Tensor


@dataclass(frozen=True, eq=False)
class Candidates:
    """K changes of one layer, each of one neuron or of one weight, each to be tried by itself.

    ``rows`` is int64 (K,), on the host. At neuron level ``columns`` is None and ``values`` (K, width) has whole neurons; at
    weight level ``columns`` is int64 (K,) and ``values`` (K,) has single numbers. Neurons that come from a ``pool`` have
    ``picks``, int64 (K,), which of the pool's they are, instead of values.
    """

    layer: Layer
    rows: Tensor
    columns: Tensor | None
    values: Tensor | None
    pool: Pool | None = None
    picks: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, first: int, last: int) -> Candidates:
        """Candidates first to last − 1."""
        if first == 0 and last >= len(self):
            return self
        columns = None if self.columns is None else self.columns[first:last]
        picks = None if self.picks is None else self.picks[first:last]
        values = None if self.values is None else self.values[first:last]
        return Candidates(self.layer, self.rows[first:last], columns, values, self.pool, picks)

    @property
    def numbers(self) -> Tensor:
        """The values, from wherever they come."""
        if self.values is not None:
            return self.values
        assert self.pool is not None
        assert self.picks is not None
        return self.pool.values[self.picks]

    def whole_rows(self, network: Network) -> Tensor:
        """The neurons as they would be, (K, width), in the network's dtype."""
        if self.columns is None:
            return self.numbers.to(network.dtype)
        rows = torch.cat([network.rows(self.layer, row, row + 1) for row in self.rows.tolist()])
        rows[torch.arange(len(rows), device=rows.device), self.columns.to(rows.device)] = self.numbers.to(
            rows.device, rows.dtype
        )
        return rows


class Evaluator(Protocol):
    """Mean losses on one set of evaluation examples; infinity where a loss is not a number."""

    def loss(self) -> float:
        """L(M) of the network as it stands."""
        ...

    def open(self, layer: Layer) -> int | None:
        """Gets ready for candidates of a layer; how many numbers each of them has to run through, None if all there are."""
        ...

    def layer_losses(self, layer: Layer, values: Iterable[LayerValue]) -> list[float]:
        """L(M[u ← W]) for each value W of a whole layer, taken one by one; the network is left as it was."""
        ...

    def losses(self, candidates: Candidates) -> list[float]:
        """L(M[u ← W]) for each candidate by itself; the network is left as it was."""
        ...

    def moving(self, candidates: Candidates, place: int) -> None:
        """Says that the candidate at ``place`` is about to be put into the network."""
        ...

    def changed(self, layer: Layer) -> None:
        """Says that a layer of the network was changed in any other way."""
        ...


class PlainEvaluator:
    """One full forward pass a loss: slow and obviously right."""

    def __init__(self, network: Network, dataset: Dataset) -> None:
        self._network = network
        self._dataset = dataset

    def loss(self) -> float:
        """See ``Evaluator.loss``."""
        return mean_loss(self.example_losses(), self._dataset)

    def example_losses(self) -> Tensor:
        """Each example's loss in the network as it stands, float64 (N,)."""
        inputs, targets, step = self._dataset.inputs, self._dataset.targets, batch_size(self._dataset.inputs)
        losses = []
        for batch, expected in zip(torch.split(inputs, step), torch.split(targets, step), strict=True):
            stop_point()
            given = batch.to(self._network.dtype) if batch.is_floating_point() else batch
            losses.append(example_losses(self._dataset.loss, self._network.logits(given), expected))
        return torch.cat(losses)

    def open(self, _: Layer) -> int | None:
        """See ``Evaluator.open``."""
        return None

    def layer_losses(self, layer: Layer, values: Iterable[LayerValue]) -> list[float]:
        """See ``Evaluator.layer_losses``."""
        kept = self._network.value(layer)
        results = []
        for value in values:
            self._network.assign(layer, value)
            results.append(self.loss())
        self._network.assign(layer, kept)
        return results

    def losses(self, candidates: Candidates) -> list[float]:
        """See ``Evaluator.losses``."""
        return [mean_loss(losses, self._dataset) for losses in self.candidate_losses(candidates)]

    def candidate_losses(self, candidates: Candidates) -> list[Tensor]:
        """Each example's loss under each candidate, float64 (N,) each."""
        results = []
        values = candidates.whole_rows(self._network)
        for row, value in zip(candidates.rows.tolist(), values, strict=True):
            kept = self._network.rows(candidates.layer, row, row + 1)[0]
            self._network.assign_row(candidates.layer, row, value)
            results.append(self.example_losses())
            self._network.assign_row(candidates.layer, row, kept)
        return results

    def moving(self, candidates: Candidates, place: int) -> None:
        """Nothing is kept that could be out of date."""

    def changed(self, layer: Layer) -> None:
        """Nothing is kept that could be out of date."""


def batch_size(inputs: Tensor) -> int:
    """How many of the examples (N, ...) run forward together."""
    most = _NUMBERS if inputs.is_floating_point() else _TOKENS
    return max(1, min(BATCH, most // max(1, inputs[:1].numel())))


def mean_loss(losses: Tensor, dataset: Dataset) -> float:
    """The mean of each example's loss, (N,), infinity where it is not a number."""
    mean = weighted_mean(losses, dataset.weights)
    return mean if math.isfinite(mean) else math.inf
