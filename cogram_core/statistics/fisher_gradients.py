"""Gradients of single examples from one backward pass of a batch: what a call of a module adds to those of its own tensors.

A module's tensors get the gradient of its inputs with the gradients of its outputs, and both are at hand example by example
when a batch has run backward. Source: Goodfellow 2015, arXiv:1510.01799, for linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

# Elements of gradients held at once, or one gradient where it is larger: what stays in a processor's cache was quickest.
_ELEMENTS = 2**18


class Addend(Protocol):
    """What one call adds to the gradients of one tensor: of B examples, R directions each."""

    def each(self, example: int) -> Tensor:
        """An example's, (R, *shape)."""
        ...

    def squares(self) -> Tensor:
        """Σ_b Σ_r g_br², of the tensor's shape."""
        ...


@dataclass(frozen=True)
class Summed:
    """Gradients as they are: (B, R, *shape)."""

    values: Tensor

    def each(self, example: int) -> Tensor:
        """See ``Addend.each``."""
        return self.values[example]

    def squares(self) -> Tensor:
        """See ``Addend.squares``."""
        return self.values.square().sum(dim=(0, 1))


@dataclass(frozen=True)
class Product:
    """Σ_l left_l ⊗ right_l over an example's places: left (B, G, R·O, L), right (B, G, L, S), of G groups' (O, S)."""

    left: Tensor
    right: Tensor
    directions: int
    shape: Sequence[int]

    def each(self, example: int) -> Tensor:
        """See ``Addend.each``."""
        return self._apart(self.left[example] @ self.right[example]).movedim(1, 0).reshape(-1, *self.shape)

    def squares(self) -> Tensor:
        """See ``Addend.squares``; (x ⊗ g)² is x² ⊗ g², so that with one place an example no gradient has to be made."""
        size = torch.Size(self.shape).numel()
        if self.left.shape[-1] == 1:
            leaving = self._apart(self.left).square().sum(dim=2)[..., 0]  # (B, G, O)
            found = torch.einsum("bgo,bgs->gos", leaving, self.right[..., 0, :].square())
        elif (step := _ELEMENTS // (self.directions * size)) > 0:
            found = torch.zeros((), dtype=self.left.dtype, device=self.left.device)
            for left, right in zip(torch.split(self.left, step), torch.split(self.right, step), strict=True):
                found = found + self._apart((left @ right).square_()).sum(dim=(0, 2))
        else:
            found = self._summed_up(max(1, _ELEMENTS // size))
        return found.reshape(*self.shape)

    def _apart(self, values: Tensor) -> Tensor:
        """(..., G, R·O, S) as (..., G, R, O, S)."""
        return values.reshape(*values.shape[:-2], self.directions, -1, values.shape[-1])

    def _summed_up(self, directions: int) -> Tensor:
        """So many directions of an example at a time."""
        rows = self.left.shape[2] // self.directions
        total = self.left.new_zeros(self.left.shape[1], rows, self.right.shape[-1])
        for left, right in zip(self.left, self.right, strict=True):
            for part in torch.split(left, directions * rows, dim=1):
                for found in torch.split(part @ right, rows, dim=1):
                    total.addcmul_(found, found)
        return total


@dataclass(frozen=True)
class Rows:
    """The rows of an embedding that an example asks for: ids int64 (B, L), their gradients (B, R, L, D); ``rows`` in all."""

    ids: Tensor
    gradients: Tensor
    rows: int

    def each(self, example: int) -> Tensor:
        """See ``Addend.each``."""
        gradients = self.gradients[example]
        found = gradients.new_zeros(len(gradients), self.rows, gradients.shape[-1])
        return found.index_add_(1, self.ids[example], gradients)

    def squares(self) -> Tensor:
        """See ``Addend.squares``; of the rows that are asked for alone."""
        places = self.ids + torch.arange(len(self.ids), device=self.ids.device)[:, None] * self.rows
        different, where = torch.unique(places, return_inverse=True)
        directions, width = self.gradients.shape[1], self.gradients.shape[-1]
        found = self.gradients.new_zeros(len(different), directions, width)
        found.index_add_(0, where.flatten(), self.gradients.transpose(1, 2).flatten(0, 1))
        squares = found.square_().sum(dim=1)
        return self.gradients.new_zeros(self.rows, width).index_add_(0, different % self.rows, squares)


@dataclass(frozen=True)
class Turned:
    """Of a matrix that lies the other way round."""

    straight: Addend

    def each(self, example: int) -> Tensor:
        """See ``Addend.each``."""
        return self.straight.each(example).mT

    def squares(self) -> Tensor:
        """See ``Addend.squares``."""
        return self.straight.squares().mT


def sum_of_squares(addends: Sequence[Addend], examples: int) -> Tensor:
    """Σ_b Σ_r (Σ_a g_abr)² in float64: what several calls add to one gradient is summed first."""
    if len(addends) == 1:
        return addends[0].squares().double()
    first, *others = addends
    total = torch.zeros((), dtype=torch.float64)
    for example in range(examples):
        found = first.each(example)
        for addend in others:
            found = found + addend.each(example)
        squares = found.square().sum(dim=0).double()
        total = squares if example == 0 else total.add_(squares)
    return total


Rule = Callable[[Sequence[Tensor]], Mapping[str, Addend]]
"""What a call adds to the gradients of its module's own tensors, from those of its output: R, of shape (B, ...) each."""


def rule_of(module: nn.Module) -> Callable[[Any, Tensor], Rule] | None:
    """What makes the rule for a module and the one tensor (B, ...) that it is given; None where there is none.

    The module's class has to be the very one: others may compute as they like.
    """
    # transformers' own layer of GPT-2 and others, a linear layer whose weight lies the other way round.
    transposed = type(module).__name__ == "Conv1D" and set(module._parameters) == {"weight", "bias"}
    return _transposed_linear if transposed else _RULES.get(type(module))


def _linear(_: nn.Module, given: Tensor) -> Rule:
    arriving = _places(given)  # (B, L, I)

    def rule(gradients: Sequence[Tensor]) -> Mapping[str, Addend]:
        leaving = torch.stack([_places(gradient) for gradient in gradients], dim=2)  # (B, L, R, O)
        shape = leaving.shape[-1], arriving.shape[-1]
        product = Product(leaving.flatten(2).mT[:, None], arriving[:, None], len(gradients), shape)
        return {"weight": product, "bias": Summed(leaving.sum(dim=1))}

    return rule


def _transposed_linear(module: nn.Module, given: Tensor) -> Rule:
    straight = _linear(module, given)

    def rule(gradients: Sequence[Tensor]) -> Mapping[str, Addend]:
        found = straight(gradients)
        return {"weight": Turned(found["weight"]), "bias": found["bias"]}

    return rule


def _places(values: Tensor) -> Tensor:
    """(B, ..., D) as (B, L, D)."""
    return values.reshape(len(values), -1, values.shape[-1])


def _convolution(module: nn.Conv1d | nn.Conv2d, given: Tensor) -> Rule:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(given, module._reversed_padding_repeated_twice, mode=mode)
    window = [module.kernel_size, module.dilation, module.stride]
    if isinstance(module, nn.Conv1d):
        padded = padded[:, :, None]
        window = [(1, *entry) for entry in window]
    size, dilation, stride = window
    patches = functional.unfold(padded, size, dilation, 0, stride)  # (B, C·K, L)
    groups = (len(given), module.groups, -1, patches.shape[-1])
    arriving = patches.reshape(groups).mT

    def rule(gradients: Sequence[Tensor]) -> Mapping[str, Addend]:
        left = torch.stack([gradient.reshape(groups) for gradient in gradients], dim=2)  # (B, G, R, O, L)
        bias = torch.stack([gradient.flatten(2).sum(dim=2) for gradient in gradients], dim=1)
        product = Product(left.flatten(2, 3), arriving, len(gradients), module.weight.shape)
        return {"weight": product, "bias": Summed(bias)}

    return rule


def _embedding(module: nn.Embedding, given: Tensor) -> Rule:
    ids = given.reshape(len(given), -1)

    def rule(gradients: Sequence[Tensor]) -> Mapping[str, Addend]:
        leaving = torch.stack([_places(gradient) for gradient in gradients], dim=1)
        if module.padding_idx is not None:
            leaving = leaving * (ids != module.padding_idx)[:, None, :, None]
        return {"weight": Rows(ids, leaving, module.num_embeddings)}

    return rule


def _layer_norm(module: nn.LayerNorm, given: Tensor) -> Rule:
    places = (len(given), -1, *module.normalized_shape)
    normal = functional.layer_norm(given, module.normalized_shape, None, None, module.eps).reshape(places)
    return lambda gradients: _scaled(normal, [gradient.reshape(places) for gradient in gradients])


def _group_norm(module: nn.GroupNorm, given: Tensor) -> Rule:
    return _by_channel(functional.group_norm(given, module.num_groups, None, None, module.eps))


def _batch_norm(module: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, given: Tensor) -> Rule:
    return _by_channel(functional.batch_norm(given, module.running_mean, module.running_var, eps=module.eps))


def _by_channel(normal: Tensor) -> Rule:
    """Of outputs (B, C, ...)."""
    channels = (*normal.shape[:2], -1)
    flat = normal.reshape(channels).mT  # (B, L, C)
    return lambda gradients: _scaled(flat, [gradient.reshape(channels).mT for gradient in gradients])


def _scaled(normal: Tensor, gradients: Sequence[Tensor]) -> Mapping[str, Addend]:
    """Of w ⊙ n + b at every place: n and each gradient (B, L, *shape)."""
    return {
        "weight": Summed(torch.stack([(normal * gradient).sum(dim=1) for gradient in gradients], dim=1)),
        "bias": Summed(torch.stack([gradient.sum(dim=1) for gradient in gradients], dim=1)),
    }


_RULES: Mapping[type[nn.Module], Callable[[Any, Tensor], Rule]] = {
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
