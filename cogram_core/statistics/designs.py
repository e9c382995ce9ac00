"""Modules as linear equations Y = X W: rows X of numbers that come in, rows Y that go out, and W to be solved for.

Everything is in groups: X (g, rows, f), W (g, f, o), Y (g, rows, o), with one group but for grouped convolutions, and for
scales and shifts of features, where each feature is a group. A bias is the row of W that belongs to a column of ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from cogram_core.networks.layers import own_tensors

Values = Mapping[str, Tensor]
"""A module's own tensors by its own names for them."""

_UNFOLDED = 2**24  # elements of a convolution's X at once


class Design(Protocol):
    """How one module's call is written as equations."""

    @property
    def key(self) -> tuple[object, ...]:
        """Modules that are given the same input have the same X where their keys are equal."""
        ...

    @property
    def constant(self) -> bool:
        """Whether a column of ones stands behind X, and the biases in the last row of W."""
        ...

    def equations(
        self, given: Tensor, outputs: Sequence[Tensor], mask: Tensor | None, /
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """X of a call, without the column of ones, and the rows of outputs side by side, in pieces.

        Args:
            given: what the call is given, (N, ...).
            outputs: each of the shape of what it gives, less the offset; of all modules that share the X. May be empty.
            mask: bool (N, T), which places of token data count; None: all. It is looked at where there is a row for each.
        """
        ...

    def offset(self, given: Tensor, /) -> Tensor | float:
        """What the call gives where W is zero, in the shape of its output."""
        ...

    def matrix(self, values: Values) -> Tensor:
        """W, (g, f, o)."""
        ...

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """The tensors of W, (g, f, o)."""
        ...


class LinearDesign:
    """y = W x + b at every place of x (..., in). ``transposed``: the weight is (in, out), as GPT-2 has it."""

    def __init__(self, module: nn.Module, transposed: bool) -> None:
        self.constant = module.bias is not None
        self._transposed = transposed

    @property
    def key(self) -> tuple[object, ...]:
        """See ``Design.key``."""
        return "linear", self.constant

    def equations(
        self, given: Tensor, outputs: Sequence[Tensor], mask: Tensor | None, /
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See ``Design.equations``."""
        yield _kept(given, mask)[None], _beside([_kept(output, mask)[None] for output in outputs])

    def offset(self, _given: Tensor, /) -> float:
        """See ``Design.offset``."""
        return 0.0

    def matrix(self, values: Values) -> Tensor:
        """See ``Design.matrix``."""
        weight = values["weight"] if self._transposed else values["weight"].t()
        return (torch.cat([weight, values["bias"][None]]) if self.constant else weight)[None]

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """See ``Design.split``."""
        weight = matrix[0, :-1] if self.constant else matrix[0]
        found = {"weight": weight if self._transposed else weight.t()}
        return found | ({"bias": matrix[0, -1]} if self.constant else {})


class ConvolutionDesign:
    """A convolution of any number of dimensions: a row for every place of its output."""

    def __init__(self, module: nn.modules.conv._ConvNd) -> None:
        self._module = module
        self.constant = module.bias is not None
        self._dims = len(module.kernel_size)
        self._shape = tuple(module.weight.shape)

    @property
    def key(self) -> tuple[object, ...]:
        """See ``Design.key``."""
        module = self._module
        geometry = (module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode)
        return "convolution", self.constant, module.groups, *geometry

    def equations(
        self, given: Tensor, outputs: Sequence[Tensor], _mask: Tensor | None, /
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See ``Design.equations``."""
        module = self._module
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padding = [int(number) for number in module._reversed_padding_repeated_twice]
        for first, last in self._pieces(given, padding):
            padded = functional.pad(given[first:last], padding, mode=mode)
            for place, (size, step, every) in enumerate(
                zip(module.kernel_size, module.stride, module.dilation, strict=True)
            ):
                padded = padded.unfold(2 + place, every * (size - 1) + 1, step)[..., ::every]
            grouped = padded.reshape(len(padded), module.groups, -1, *padded.shape[2:])  # (N, g, C/g, *places, *kernel)
            places = list(range(3, 3 + self._dims))
            kernel = list(range(3 + self._dims, 3 + 2 * self._dims))
            moved = grouped.permute(1, 0, *places, 2, *kernel)  # (g, N, *places, C/g, *kernel)
            rows = moved.flatten(2 + self._dims).flatten(1, 1 + self._dims)
            yield rows, _beside([self._outputs(output[first:last]) for output in outputs])

    def _pieces(self, given: Tensor, padding: list[int]) -> Iterator[tuple[int, int]]:
        each = math.prod(size + sum(padding[-2 * place - 2 :][:2]) for place, size in enumerate(given.shape[2:]))
        step = max(1, _UNFOLDED // max(1, each * given.shape[1] * math.prod(self._module.kernel_size)))
        for first in range(0, len(given), step):
            yield first, min(first + step, len(given))

    def _outputs(self, output: Tensor) -> Tensor:
        grouped = output.flatten(2).reshape(
            len(output), self._module.groups, -1, output[0, 0].numel()
        )  # (N, g, o, places)
        return torch.flatten(grouped.permute(1, 0, 3, 2), 1, 2)

    def offset(self, _given: Tensor, /) -> float:
        """See ``Design.offset``."""
        return 0.0

    def matrix(self, values: Values) -> Tensor:
        """See ``Design.matrix``."""
        groups = self._module.groups
        flat = values["weight"].flatten(1)
        weight = flat.reshape(groups, -1, flat.shape[1]).transpose(1, 2)
        return torch.cat([weight, values["bias"].view(groups, 1, -1)], 1) if self.constant else weight

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """See ``Design.split``."""
        weight = matrix[:, :-1] if self.constant else matrix
        found = {"weight": weight.transpose(1, 2).reshape(self._shape)}
        return found | ({"bias": matrix[:, -1].reshape(-1)} if self.constant else {})


class FeatureDesign:
    """A module whose output is, feature by feature, an affine function of its one-dimensional tensors.

    What multiplies each of them is found by running the module with ones and zeros in their place: this holds of
    LayerNorm, GroupNorm, and RMSNorm with whatever is added to its scale. ``axis`` is where features stand.
    """

    def __init__(self, module: nn.Module, axis: int) -> None:
        self._module = module
        self._axis = axis
        self._names = tuple(own_tensors(module))
        self.constant = False

    @property
    def key(self) -> tuple[object, ...]:
        """See ``Design.key``; none other has these equations."""
        return "features", id(self)

    def equations(
        self, given: Tensor, outputs: Sequence[Tensor], mask: Tensor | None, /
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See ``Design.equations``."""
        nothing = self._run(given, None)
        columns = [_features(self._run(given, name) - nothing, self._axis, mask) for name in self._names]
        yield torch.stack(columns, -1), _beside([_features(output, self._axis, mask)[:, :, None] for output in outputs])

    def _run(self, given: Tensor, ones: str | None) -> Tensor:
        """The output with all tensors zero, but for one of ones."""
        own = own_tensors(self._module)
        kept = {name: tensor.detach().clone() for name, tensor in own.items()}
        try:
            for name, tensor in own.items():
                tensor.detach().fill_(float(name == ones))
            with torch.no_grad():
                output: Tensor = self._module.forward(given.clone())
            return output
        finally:
            for name, tensor in own.items():
                tensor.detach().copy_(kept[name])

    def offset(self, given: Tensor, /) -> Tensor:
        """See ``Design.offset``."""
        return self._run(given, None)

    def matrix(self, values: Values) -> Tensor:
        """See ``Design.matrix``."""
        return torch.stack([values[name] for name in self._names], 1)[:, :, None]

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """See ``Design.split``."""
        return {name: matrix[:, place, 0] for place, name in enumerate(self._names)}


class NormalisedDesign:
    """Batch normalisation with the statistics that the module has now.

    W holds the scale and the shift. A source's are converted, so that with these statistics they do what they did with
    its own.
    """

    def __init__(self, module: nn.modules.batchnorm._BatchNorm) -> None:
        own = own_tensors(module)
        self._epsilon = module.eps
        self._mean = own["running_mean"].detach().clone()
        self._deviation = torch.sqrt(own["running_var"].detach() + module.eps)
        self.constant = True

    @property
    def key(self) -> tuple[object, ...]:
        """See ``Design.key``."""
        return "normalised", id(self)

    def equations(
        self, given: Tensor, outputs: Sequence[Tensor], _mask: Tensor | None, /
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """See ``Design.equations``."""
        found = (_features(given, 1, None) - self._mean[:, None]) / self._deviation[:, None]  # (d, rows)
        yield found[:, :, None], _beside([_features(output, 1, None)[:, :, None] for output in outputs])

    def offset(self, _given: Tensor, /) -> float:
        """See ``Design.offset``."""
        return 0.0

    def matrix(self, values: Values) -> Tensor:
        """See ``Design.matrix``."""
        deviation = torch.sqrt(values["running_var"] + self._epsilon)
        scale = values["weight"] * (self._deviation / deviation)  # the same where the statistics are
        shift = values["bias"] + values["weight"] * ((self._mean - values["running_mean"]) / deviation)
        return torch.stack([scale, shift], 1)[:, :, None]

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """See ``Design.split``."""
        return {"weight": matrix[:, 0, 0], "bias": matrix[:, 1, 0]}


def linear_design(module: nn.Module) -> Design | None:
    """The equations of a linear layer or a convolution; None of anything else."""
    if isinstance(module, nn.Linear):
        return LinearDesign(module, transposed=False)
    if any(f"{kind.__module__}.{kind.__name__}" == "transformers.pytorch_utils.Conv1D" for kind in type(module).mro()):
        return LinearDesign(module, transposed=True)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return ConvolutionDesign(module)
    return None


def feature_axes(module: nn.Module) -> list[int]:
    """Where features of a module with one-dimensional tensors alone may stand: in the last place, or behind the batch."""
    own = own_tensors(module)
    small = {tensor.shape for tensor in own.values()}
    alone = not any(module.children()) and all(isinstance(tensor, nn.Parameter) for tensor in own.values())
    if not alone or len(small) != 1 or len(next(iter(small))) != 1:
        return []
    return [-1, 1]


def fits(design: Design, values: Values, given: Tensor, output: object) -> bool:
    """Whether the equations hold of what a call was given and gave, so that nothing else happens inside of it."""
    if not isinstance(output, Tensor) or not given.is_floating_point() or output.dtype != given.dtype:
        return False
    try:
        matrix = design.matrix(values)
        for rows, wanted in design.equations(given, [output - design.offset(given)], None):
            found = rows @ matrix[:, :-1] + matrix[:, -1:] if design.constant else rows @ matrix
            if not _close(found, wanted):
                return False
        return True
    except (RuntimeError, IndexError, ValueError, TypeError):
        return False


def _close(found: Tensor, wanted: Tensor | None) -> bool:
    """Up to rounding, measured by the largest number."""
    if wanted is None or found.shape != wanted.shape:
        return False
    largest = max(float(wanted.abs().max()), float(found.abs().max())) if wanted.numel() else 0.0
    difference = float((found - wanted).abs().max()) if wanted.numel() else 0.0
    return difference <= largest * 1e3 * torch.finfo(wanted.dtype).eps


def _kept(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """Rows (R, d) of a tensor (..., d), without places that don't count, where it has a row for each."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    if mask is None or len(rows) != mask.numel() or tensor.shape[:-1] not in (mask.shape, (mask.numel(),)):
        return rows
    return rows[mask.reshape(-1)]


def _features(tensor: Tensor, axis: int, mask: Tensor | None) -> Tensor:
    """One row of numbers a feature, (d, rows)."""
    moved = tensor.movedim(axis, -1)
    return (_kept(moved, mask) if axis == -1 else moved.reshape(-1, moved.shape[-1])).t()


def _beside(outputs: Sequence[Tensor]) -> Tensor | None:
    """Outputs (g, rows, o) side by side; None where there are none."""
    return torch.cat(list(outputs), 2) if len(outputs) > 1 else next(iter(outputs), None)
