"""A layer's output channel by channel, as it is and as candidates would have it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cogram_core.evaluation.evaluator import Candidates, Pool
from cogram_core.networks.layers import Layer
from cogram_core.networks.network import Network

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Bytes of channels that are worked out before they are asked for.
POOLED_BYTES = 2**25


class Columns:
    """``current`` is the output as it stands, (out, N, ...), of inputs (N, ..., in), or (N, in, ...) of a convolution."""

    def __init__(self, layer: Layer, network: Network, inputs: Tensor, current: Tensor) -> None:
        self._layer = layer
        self._network = network
        self._module = network.module.get_submodule(layer.name)
        self._inputs = inputs  # (N, ..., in), or (N, in, ...) of a convolution
        # Of a linear layer: (in, N, ...).
        self._by_feature = inputs.movedim(-1, 0).contiguous() if isinstance(self._module, nn.Linear) else None
        self._pooled: tuple[Pool, Tensor] | None = None
        self._asked: tuple[Candidates, Tensor] | None = None
        self.current = current  # (out, N, ...)

    @staticmethod
    def joined(parts: Sequence[Columns]) -> Columns:
        """The same for all examples of several parts, of a layer ``of_vectors``."""
        first = parts[0]
        if len(parts) == 1:
            return first
        current = torch.cat([part.current for part in parts], dim=1)
        return Columns(first._layer, first._network, torch.cat([part.features for part in parts], dim=1).t(), current)

    @property
    def features(self) -> Tensor:
        """A linear layer's inputs feature by feature, (in, N, ...)."""
        assert self._by_feature is not None
        return self._by_feature

    @property
    def of_vectors(self) -> bool:
        """Whether the layer is linear and every example is one vector to it."""
        return self._by_feature is not None and self._by_feature.ndim == 2

    @property
    def sizes(self) -> tuple[int, int]:
        """How many inputs a neuron has, and how many numbers, its bias included."""
        return math.prod(self._layer.shapes[0][1:]), self._layer.width

    def of(self, candidates: Candidates) -> Tensor:
        """The channel that each candidate changes, as it would be: (K, N, ...)."""
        channels = self._work_out(candidates)
        self._asked = candidates, channels
        return channels

    def move(self, candidates: Candidates, place: int) -> Tensor:
        """Takes over the channel of a candidate that is about to be in the network, and gives it, (N, ...)."""
        if self._asked is not None and self._asked[0] is candidates:
            channel = self._asked[1][place]
        else:
            channel = self._work_out(candidates.part(place, place + 1))[0]
        self.current[candidates.rows[place]] = channel
        self._asked = None
        return channel

    def _work_out(self, candidates: Candidates) -> Tensor:
        if candidates.columns is not None and self._by_feature is not None:
            return self._of_weights(candidates, candidates.columns, self._by_feature)
        if candidates.pool is None or candidates.picks is None or not self.fits(candidates.pool):
            return self._of_rows(candidates.whole_rows(self._network))
        if self._pooled is None or self._pooled[0] is not candidates.pool:
            self._pooled = candidates.pool, self.of_pool(candidates.pool)
        return self._pooled[1].index_select(0, candidates.picks.to(self.current.device))

    def fits(self, pool: Pool) -> bool:
        """Whether there is room for all channels of a pool."""
        return len(pool.values) * self.current[:1].nbytes <= POOLED_BYTES

    def of_pool(self, pool: Pool) -> Tensor:
        """The channels of all neurons of a pool, (M, N, ...)."""
        return self._of_rows(pool.values.to(self._network.dtype))

    def _of_rows(self, rows: Tensor) -> Tensor:
        """The channels that neurons (K, width) would have."""
        first, *others = self._layer.shapes
        into = math.prod(first[1:])
        weight, bias = rows[:, :into], rows[:, into] if others else None
        if self._by_feature is not None and self._by_feature.ndim == 2:
            product = weight @ self._by_feature  # in the order in which it is wanted
            return product if bias is None else product.add_(bias.unsqueeze(1))
        if isinstance(self._module, nn.Linear):
            return nn.functional.linear(self._inputs, weight, bias).movedim(-1, 0)
        weight = weight.reshape(-1, *first[1:])
        convolved: Tensor = self._module._conv_forward(self._inputs, weight, bias)  # type: ignore[operator]
        return convolved.movedim(1, 0)

    def change(self, candidates: Candidates) -> Tensor:
        """By how much each candidate changes its one weight of a linear layer, (K,)."""
        assert candidates.columns is not None
        weight, *biases = (self._network.tensor(name) for name in self._layer.tensors)
        rows, columns = candidates.rows.to(weight.device), candidates.columns.to(weight.device)
        present = weight[rows, columns.clamp(max=weight.shape[1] - 1)]
        if biases:
            present = torch.where(columns < weight.shape[1], present, biases[0][rows])
        return candidates.numbers.to(weight.device, weight.dtype) - present

    def _of_weights(self, candidates: Candidates, columns: Tensor, features: Tensor) -> Tensor:
        """One weight times its feature is all that changes; behind the features stands the bias, times one."""
        shape, last = (-1,) + (1,) * (features.ndim - 1), len(features) - 1
        rows, columns = candidates.rows.to(features.device), columns.to(features.device)
        moved = features.index_select(0, columns.clamp(max=last))
        if len(self._layer.tensors) > 1:
            moved = torch.where((columns <= last).reshape(shape), moved, 1.0)
        return torch.addcmul(self.current.index_select(0, rows), self.change(candidates).reshape(shape), moved)
