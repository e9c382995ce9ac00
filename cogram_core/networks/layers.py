"""What CoGraM decides on: layers, their neurons, single weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

Level = Literal["layer", "neuron", "weight"]

# Their tensors have one row a neuron; an embedding's neuron is the vector of one token.
_ROW_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)


@dataclass(frozen=True)
class Layer:
    """One parameterised module: its own floating tensors, statistics of normalisation included.

    ``name`` is what stands before the last dot of its tensors' names in the checkpoint, and ``module`` the name of the
    module that has them; None where other modules use them, too, or they are only parts of a module's tensors.
    ``tensors`` has the weight first, ``shapes`` their shapes. ``neurons`` counts its output units, 0 where it has a layer
    level only. A layer with neurons can be seen as one matrix with a row a neuron: the neuron's part of every tensor,
    flattened, one after the other. A weight's column counts in this row, so that a bias stands behind the weights.
    """

    name: str
    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    neurons: int
    module: str | None = None

    @cached_property
    def width(self) -> int:
        """Numbers of one neuron: the matrix's columns."""
        return sum(math.prod(shape[1:]) for shape in self.shapes)

    def matrix(self, part: Callable[[str], Tensor]) -> Tensor:
        """Rows as one matrix (R, width); ``part(name)`` gives these rows of one tensor, shape (R, ...)."""
        parts = [part(name).flatten(1) if len(shape) > 1 else part(name)[:, None] for name, shape in self._items()]
        return torch.cat(parts, dim=1)

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Rows (R, width) as parts of the tensors again, each of shape (R, ...)."""
        sizes = [math.prod(shape[1:]) for shape in self.shapes]
        parts = torch.split(matrix, sizes, dim=1)
        return {name: part.reshape(-1, *shape[1:]) for part, (name, shape) in zip(parts, self._items(), strict=True)}

    def place(self, column: int) -> tuple[str, int]:
        """The tensor in which a column of the matrix stands, and where in the row, counted from the row's start.

        Raises:
            ValueError: if there is no such column.
        """
        left = column
        for name, shape in self._items():
            size = math.prod(shape[1:])
            if 0 <= left < size:
                return name, left
            left -= size
        raise ValueError(f"layer {self.name} has no column {column}")

    def _items(self) -> list[tuple[str, tuple[int, ...]]]:
        return list(zip(self.tensors, self.shapes, strict=True))


LayerValue = Mapping[str, Tensor]
"""All tensors of a layer by name."""


def layer_of(name: str, module: nn.Module, tensors: Mapping[str, str]) -> Layer:
    """The layer that a module is.

    Args:
        name: the layer's.
        module: has the tensors.
        tensors: what the checkpoint calls each of the module's own floating tensors.
    """
    own = own_tensors(module)
    shapes = {tensors[inner]: tuple(tensor.shape) for inner, tensor in own.items()}
    rows = module.weight.shape[0] if isinstance(module, _ROW_MODULES) else 0
    return make_layer(name, shapes, rows if all(shape[:1] == (rows,) for shape in shapes.values()) else 0)


def make_layer(name: str, shapes: Mapping[str, tuple[int, ...]], neurons: int) -> Layer:
    """A layer of tensors with these names and shapes, in the one order that columns count in: the weight first."""
    names = sorted(shapes, key=lambda tensor: (tensor.rpartition(".")[2] != "weight", tensor))
    return Layer(name, tuple(names), tuple(shapes[tensor] for tensor in names), neurons)


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own floating tensors that a checkpoint holds, not those of modules inside it."""
    persistent = set(module.state_dict())
    own = {**module._parameters, **module._buffers}
    return {
        name: tensor
        for name, tensor in own.items()
        if tensor is not None and tensor.is_floating_point() and name in persistent
    }
