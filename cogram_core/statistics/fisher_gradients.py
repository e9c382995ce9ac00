"""Gradients of single examples from one backward pass of a batch: what a call of a module adds to those of its own tensors.

A module's tensors get the gradient of its inputs with the gradients of its outputs, and both are at hand example by example
when a batch has run backward. Source: Goodfellow 2015, arXiv:1510.01799, for linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

# Elements of gradients held at once, or one example's where that is more; what a processor's cache holds was quickest.
_ELEMENTS = 2**20


class Addend(Protocol):
    """What one call adds to each of B examples' gradients of one tensor."""

    def each(self, part: slice) -> Tensor:
        """For some of the examples, (b, *shape)."""
        ...

    def squares(self) -> Tensor | None:
        """Σ_b g_b², of the tensor's shape, where there is a shorter way than by ``each``; None where there is none."""
        ...


@dataclass(frozen=True)
class Summed:
    """Gradients as they are: (B, *shape)."""

    values: Tensor

    def each(self, part: slice) -> Tensor:
        """See ``Addend.each``."""
        return self.values[part]

    def squares(self) -> Tensor | None:
        """See ``Addend.squares``."""
        return self.values.square().sum(dim=0)


@dataclass(frozen=True)
class Product:
    """Σ_l left_l ⊗ right_l over the places of an example: left (B, ..., R, L), right (B, ..., L, S), of so many numbers."""

    left: Tensor
    right: Tensor
    shape: Sequence[int]

    def each(self, part: slice) -> Tensor:
        """See ``Addend.each``."""
        return (self.left[part] @ self.right[part]).reshape(-1, *self.shape)

    def squares(self) -> Tensor | None:
        """(x ⊗ g)² is x² ⊗ g²: with one place an example it is summed over the examples at once."""
        if self.left.shape[-1] != 1:
            return None
        left, right = self.left[..., 0].movedim(0, -1), self.right[..., 0, :].movedim(0, -2)
        return (left.square() @ right.square()).reshape(*self.shape)


@dataclass(frozen=True)
class Rows:
    """The rows of an embedding that an example asks for: ids int64 (B, L), their gradients (B, L, D); ``rows`` in all."""

    ids: Tensor
    gradients: Tensor
    rows: int

    def each(self, part: slice) -> Tensor:
        """See ``Addend.each``."""
        ids, gradients = self.ids[part], self.gradients[part]
        places = ids + torch.arange(len(ids), device=ids.device)[:, None] * self.rows
        width = gradients.shape[-1]
        found = gradients.new_zeros(len(ids) * self.rows, width).index_add_(
            0, places.flatten(), gradients.flatten(0, 1)
        )
        return found.reshape(len(ids), self.rows, width)

    def squares(self) -> Tensor | None:
        """Of the rows that are asked for alone."""
        places = self.ids + torch.arange(len(self.ids), device=self.ids.device)[:, None] * self.rows
        different, where = torch.unique(places, return_inverse=True)
        width = self.gradients.shape[-1]
        found = self.gradients.new_zeros(len(different), width).index_add_(
            0, where.flatten(), self.gradients.flatten(0, 1)
        )
        return self.gradients.new_zeros(self.rows, width).index_add_(0, different % self.rows, found.square_())


def sum_of_squares(addends: Sequence[Addend], examples: int, shape: Sequence[int]) -> Tensor:
    """Σ_b (Σ_a g_ab)² in float64, of ``shape``: what several calls add to one example's gradient is summed first."""
    if len(addends) == 1 and (short := addends[0].squares()) is not None:
        return short.double()
    total = torch.zeros(0, dtype=torch.float64)
    step = max(1, _ELEMENTS // max(1, torch.Size(shape).numel()))
    for first in range(0, examples, step):
        part = slice(first, first + step)
        found = addends[0].each(part)
        for addend in addends[1:]:
            found = found + addend.each(part)
        squares = found.square().sum(dim=0).double()
        total = squares if first == 0 else total.add_(squares)
    return total


Rule = Callable[[nn.Module, Tensor, Tensor], Mapping[str, Addend]]
"""What a call adds to the gradients of a module's own tensors, from its input and its output's gradient, B examples each."""


def rule_of(module: nn.Module) -> Rule | None:
    """The rule for a module whose one input is a tensor; None where none is known. Its class has to be the very one."""
    # transformers' own layer of GPT-2 and others, a linear layer whose weight lies the other way round.
    transposed = type(module).__name__ == "Conv1D" and set(module._parameters) == {"weight", "bias"}
    return _transposed_linear if transposed else _RULES.get(type(module))


def _linear(_: nn.Module, given: Tensor, gradient: Tensor) -> Mapping[str, Addend]:
    arriving, leaving = _places(given), _places(gradient)  # (B, L, I), (B, L, O)
    shape = leaving.shape[-1], arriving.shape[-1]
    return {"weight": Product(leaving.mT, arriving, shape), "bias": Summed(leaving.sum(dim=1))}


def _transposed_linear(_: nn.Module, given: Tensor, gradient: Tensor) -> Mapping[str, Addend]:
    arriving, leaving = _places(given), _places(gradient)
    shape = arriving.shape[-1], leaving.shape[-1]
    return {"weight": Product(arriving.mT, leaving, shape), "bias": Summed(leaving.sum(dim=1))}


def _places(values: Tensor) -> Tensor:
    """(B, ..., D) as (B, L, D)."""
    return values.reshape(len(values), -1, values.shape[-1])


def _convolution(module: nn.Module, given: Tensor, gradient: Tensor) -> Mapping[str, Addend]:
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(given, module._reversed_padding_repeated_twice, mode=mode)
    window = [module.kernel_size, module.dilation, module.stride]
    if isinstance(module, nn.Conv1d):
        padded = padded[:, :, None]
        window = [(1, *entry) for entry in window]
    size, dilation, stride = window
    patches = functional.unfold(padded, size, dilation, 0, stride)  # (B, C·K, L)
    groups = (len(given), module.groups, -1, patches.shape[-1])
    leaving = gradient.flatten(2)  # (B, O, L)
    product = Product(leaving.reshape(groups), patches.reshape(groups).mT, module.weight.shape)
    return {"weight": product, "bias": Summed(leaving.sum(dim=2))}


def _embedding(module: nn.Module, given: Tensor, gradient: Tensor) -> Mapping[str, Addend]:
    assert isinstance(module, nn.Embedding)
    ids, gradients = given.reshape(len(given), -1), _places(gradient)
    if module.padding_idx is not None:
        gradients = gradients * (ids != module.padding_idx)[..., None]
    return {"weight": Rows(ids, gradients, module.num_embeddings)}


def _layer_norm(module: nn.Module, given: Tensor, gradient: Tensor) -> Mapping[str, Addend]:
    assert isinstance(module, nn.LayerNorm)
    shape = module.normalized_shape
    normal = functional.layer_norm(given, shape, None, None, module.eps)
    places = (len(given), -1, *shape)
    return _scaled(normal.reshape(places), gradient.reshape(places))


def _group_norm(module: nn.Module, given: Tensor, gradient: Tensor) -> Mapping[str, Addend]:
    assert isinstance(module, nn.GroupNorm)
    normal = functional.group_norm(given, module.num_groups, None, None, module.eps)
    return _by_channel(normal, gradient)


def _batch_norm(module: nn.Module, given: Tensor, gradient: Tensor) -> Mapping[str, Addend]:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    normal = functional.batch_norm(given, module.running_mean, module.running_var, eps=module.eps)
    return _by_channel(normal, gradient)


def _by_channel(normal: Tensor, gradient: Tensor) -> Mapping[str, Addend]:
    channels = (*normal.shape[:2], -1)
    return _scaled(normal.reshape(channels).mT, gradient.reshape(channels).mT)


def _scaled(normal: Tensor, gradient: Tensor) -> Mapping[str, Addend]:
    """Of w ⊙ n + b at every place: n (B, L, *shape) and the gradient."""
    return {"weight": Summed((normal * gradient).sum(dim=1)), "bias": Summed(gradient.sum(dim=1))}


_RULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Embedding: _embedding,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
}
