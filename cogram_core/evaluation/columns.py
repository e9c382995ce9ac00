"""A layer's output channel by channel, as it is and as candidates would have it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
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
        self._module = network.module_of(layer)
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
        if candidates.columns is not None:
            return self._of_weights(candidates, candidates.columns)
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
        """By how much each candidate changes its one weight, (K,)."""
        assert candidates.columns is not None
        weight, *biases = (self._network.tensor(name) for name in self._layer.tensors)
        weight = weight.flatten(1)
        rows, columns = candidates.rows.to(weight.device), candidates.columns.to(weight.device)
        present = weight[rows, columns.clamp(max=weight.shape[1] - 1)]
        if biases:
            present = torch.where(columns < weight.shape[1], present, biases[0][rows])
        return candidates.numbers.to(weight.device, weight.dtype) - present

    def _of_weights(self, candidates: Candidates, columns: Tensor) -> Tensor:
        """One weight times its feature is all that changes; behind the features stands the bias, times one."""
        rows, moved = candidates.rows.to(self.current.device), self._features(columns)
        change = self.change(candidates).reshape(-1, *(1,) * (moved.ndim - 1))
        return torch.addcmul(self.current.index_select(0, rows), change, moved)

    def _features(self, columns: Tensor) -> Tensor:
        """What the weights of some columns are multiplied with, (K, N, ...)."""
        into = math.prod(self._layer.shapes[0][1:])
        if self._by_feature is None:
            return torch.stack([self._shifted(column) if column < into else self._ones for column in columns.tolist()])
        columns = columns.to(self._by_feature.device)
        moved = self._by_feature.index_select(0, columns.clamp(max=into - 1))
        inner = (columns < into).reshape(-1, *(1,) * (moved.ndim - 1))
        return moved if len(self._layer.tensors) == 1 else torch.where(inner, moved, 1.0)

    def _shifted(self, column: int) -> Tensor:
        """What one weight of a convolution meets at each place of the output, (N, ...)."""
        module, sizes = self._module, self._layer.shapes[0][1:]
        channel, *places = (int(place) for place in np.unravel_index(column, sizes))
        steps = zip(places, module.dilation, module.stride, self.current.shape[2:], strict=True)  # type: ignore[arg-type]
        slices = [slice(at * apart, at * apart + (count - 1) * step + 1, step) for at, apart, step, count in steps]
        return self._padded[:, channel][(slice(None), *slices)]

    @cached_property
    def _padded(self) -> Tensor:
        """A convolution's inputs as it sees them, (N, in, ...)."""
        sizes, mode = self._module._reversed_padding_repeated_twice, self._module.padding_mode
        return nn.functional.pad(self._inputs, sizes, mode="constant" if mode == "zeros" else mode)  # type: ignore[arg-type]

    @cached_property
    def _ones(self) -> Tensor:
        return torch.ones_like(self.current[0])
