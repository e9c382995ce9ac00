"""How many numbers pass through a network's layers, told from their descriptions. Free of torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cogram_core.recipe.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Embedding,
    Flatten,
    LayerSpec,
    Linear,
    MaxPool2d,
    Residual,
    Shape,
    Unflatten,
    named_layers,
)


@dataclass(frozen=True)
class Passing:
    """A layer with tensors and the numbers of one example: what arrives at it, what it gives, and what is known before it.

    ``before`` counts the outputs of everything that is called, and done, before the layer: what has to be kept so that a
    pass can begin there. Of a residual that is done it is the sum alone that counts, not what is inside.
    """

    name: str
    layer: LayerSpec
    arriving: int
    leaving: int
    before: int


def passings(layers: Iterable[LayerSpec], shape: Shape) -> tuple[list[Passing], Shape] | None:
    """Every layer with tensors, in the order of their calls, and the shape of the output.

    Args:
        layers: the network's.
        shape: of one input, without the batch's dimension.

    Returns:
        None where the layers can't take such an input.
    """
    found: list[Passing] = []
    try:
        return found, _through(layers, shape, 0, "", found)
    except ValueError:
        return None


def _through(layers: Iterable[LayerSpec], shape: Shape, before: int, place: str, found: list[Passing]) -> Shape:
    """The output's shape of layers that stand below ``place``, whose layers are added to ``found``."""
    for name, layer in named_layers(layers):
        if isinstance(layer, Residual):
            output = _through(layer.layers, shape, before, f"{place}{name}.layers.", found)
            if layer.shortcut is not None:
                _through(layer.shortcut, shape, before + math.prod(output), f"{place}{name}.shortcut.", found)
        else:
            output = _output(layer, shape)
            if layer.tensors():
                found.append(Passing(place + name, layer, math.prod(shape), math.prod(output), before))
        before += math.prod(output)
        shape = output
    return shape


def _output(layer: LayerSpec, shape: Shape) -> Shape:
    """The shape of a layer's output for an input of ``shape``; ValueError where it takes no such input."""
    match layer:
        case Linear():
            return (*_but_last(shape, 1), layer.out_features)
        case Embedding():
            return (*shape, layer.embedding_dim)
        case Conv1d():
            return (layer.out_channels, *_convolved(layer, shape[1:], 1))
        case Conv2d():
            return (layer.out_channels, *_convolved(layer, shape[1:], 2))
        case MaxPool2d() | AvgPool2d():
            stride = layer.kernel_size if layer.stride is None else layer.stride
            space = _windows(shape[-2:], layer.kernel_size, stride, layer.padding, 1)
            return (*_but_last(shape, 2), *space)
        case AdaptiveAvgPool2d():
            return (*_but_last(shape, 2), *_each(layer.output_size, 2))
        case Flatten():
            return _flattened(shape, layer.start_dim, layer.end_dim)
        case Unflatten():
            if math.prod(layer.unflattened_size) != math.prod(shape[layer.dim - 1 : layer.dim]):
                raise ValueError(f"dimension {layer.dim} of {shape} is not {layer.unflattened_size}")
            return (*shape[: layer.dim - 1], *layer.unflattened_size, *shape[layer.dim :])
        case _:
            return shape


def _but_last(shape: Shape, count: int) -> Shape:
    if len(shape) < count:
        raise ValueError(f"{shape} has fewer than {count} dimensions")
    return shape[:-count]


def _flattened(shape: Shape, first: int, last: int) -> Shape:
    """Dimensions ``first`` to ``last`` as one; they count from the batch's, or from behind."""
    last += 0 if last >= 0 else len(shape) + 1
    if not first <= last <= len(shape):
        raise ValueError(f"{shape} has no dimensions {first} to {last}")
    return (*shape[: first - 1], math.prod(shape[first - 1 : last]), *shape[last:])


def _convolved(layer: Conv1d | Conv2d, space: Shape, dimensions: int) -> Iterator[int]:
    if len(space) != dimensions:
        raise ValueError(f"{space} has not {dimensions} dimensions")
    if layer.padding == "same":
        return iter(space)
    padding = 0 if layer.padding == "valid" else layer.padding
    return _windows(space, layer.kernel_size, layer.stride, padding, layer.dilation)


_Sizes = int | tuple[int, int]


def _windows(space: Shape, kernel: _Sizes, stride: _Sizes, padding: _Sizes, dilation: _Sizes) -> Iterator[int]:
    """⌊(n + 2p − d·(k − 1) − 1) / s⌋ + 1 for each dimension."""
    each = (_each(sizes, len(space)) for sizes in (kernel, stride, padding, dilation))
    for size, k, s, p, d in zip(space, *each, strict=True):
        if (reach := size + 2 * p - d * (k - 1) - 1) < 0:
            raise ValueError(f"a window of {k} is larger than {size}")
        yield reach // s + 1


def _each(sizes: _Sizes, dimensions: int) -> tuple[int, ...]:
    return (sizes,) * dimensions if isinstance(sizes, int) else sizes
