"""What a module with tensors does to units that come in another order, found by calling it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogram_core.networks.permutations_wiring import Key, Wiring, floats, integers, with_floats
from cogram_core.permuting import Axis

Moves = Mapping[int, Axis]
"""Which of a call's floating tensors have their units in another order, and where these stand; the rest is as it was."""

_TOLERANCE = (
    1e-4  # of the largest number; rounding is a hundred times smaller, what a unit does a thousand times larger
)
_MOST_TRIALS = 64


@dataclass(frozen=True)
class Rows:
    """Where a module's own output units stand: their axes in its tensors, and in its output. ``units`` counts them."""

    units: int
    tensors: tuple[tuple[str, int], ...]
    output: int
    place: Axis

    def axes(self, before: int, after: int) -> tuple[Axis, ...]:
        """The axes, where some rows together count as one unit."""
        return tuple(Axis(tensor, dim, before, after) for tensor, dim in self.tensors)

    def moves(self, before: int, after: int) -> Moves:
        """What becomes of the output."""
        place = self.place
        return {self.output: Axis("", place.dim, place.before * before, place.after * after)}


@dataclass(frozen=True)
class Passing:
    """What a module's tensors have to do for units that come in another order, and what comes out of it then."""

    axes: tuple[Axis, ...]
    moves: Moves


def same(value: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree but for rounding; NaN agrees with nothing."""
    if value.shape != other.shape:
        return False
    if value.numel() == 0:
        return True
    return bool((value - other).abs().max() <= _TOLERANCE * value.abs().max())


def cycle(units: int) -> Tensor:
    """Each unit takes the place of the one before it. With ``swap`` it generates every order there is."""
    return torch.arange(1, units + 1) % units


def swap(units: int) -> Tensor:
    """The first two units change places."""
    return torch.tensor([1, 0, *range(2, units)])


def moves_between(old: Any, new: Any, units: int) -> Moves | None:
    """Where ``units`` units have moved by ``cycle`` in nested values; None where something else has happened.

    Whole numbers may not differ: they choose, such as an expert.
    """
    olds, news = floats(old), floats(new)
    if len(olds) != len(news) or not _all_equal(integers(old), integers(new)):
        return None
    moves = {}
    for place, (before, now) in enumerate(zip(olds, news, strict=True)):
        if same(before, now):
            continue
        axis = _axis_between(before, now, units)
        if axis is None:
            return None
        moves[place] = axis
    return moves


def _all_equal(values: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return len(values) == len(others) and all(map(torch.equal, values, others))


def _axis_between(old: Tensor, new: Tensor, units: int) -> Axis | None:
    if old.shape != new.shape:
        return None
    order = cycle(units)
    for dim, size in enumerate(old.shape):
        for after in divisors(size // units) if size % units == 0 else ():
            axis = Axis("", dim, size // units // after, after)
            if same(moved(old, axis, order), new):
                return axis
    return None


def divisors(number: int) -> list[int]:
    """From 1 up."""
    return [n for n in range(1, number + 1) if number % n == 0]


def moved(tensor: Tensor, axis: Axis, order: Tensor) -> Tensor:
    """The tensor with its units along one axis in another order."""
    return tensor.index_select(axis.dim, axis.places(order).to(tensor.device))


def rows_of(wiring: Wiring, name: str) -> Rows | None:
    """A leaf's output units, where their order is that of its tensors' rows or columns and of nothing else."""
    (key, *_) = wiring.calls_of(name)
    looks_up = not floats(wiring.given[key])  # a table's rows are what is asked for, its columns the units
    shapes = {tensor: wiring.tensors[tensor].shape for tensor in wiring.leaves[name]}
    for tensor, shape in shapes.items():
        dims = range(len(shape)) if len(shape) > 1 else ()
        for dim in reversed(dims) if looks_up else dims:
            units = shape[dim]
            if units < 2:
                continue
            carried = [(other, 0) for other, size in shapes.items() if tuple(size) == (units,)]
            axes = [Axis(*carrier) for carrier in ((tensor, dim), *carried)]
            output = wiring.run_leaf(name, wiring.given[key], axes, cycle(units))
            moves = moves_between(wiring.gave[key], output, units)
            if moves and len(moves) == 1:
                ((place, axis),) = moves.items()
                return Rows(units, ((tensor, dim), *carried), place, axis)
    return None


def passing(wiring: Wiring, key: Key, moves: Moves, units: int) -> Passing | None:
    """How a leaf can take arguments whose units have moved by ``cycle``: it reads them, or hands them on, in that order.

    None where no order of its tensors makes up for it.
    """
    name, order = key[0], cycle(units)
    given = floats(wiring.given[key])
    arriving = [moved(value, moves[place], order) if place in moves else value for place, value in enumerate(given)]
    arguments = with_floats(wiring.given[key], arriving)
    sizes = {given[place].shape[axis.dim]: axis for place, axis in moves.items()}
    for axes, reads in _trials(wiring, name, sizes, units):
        found = moves_between(wiring.gave[key], wiring.run_leaf(name, arguments, axes, order), units)
        if found is not None and reads == (not found):
            return Passing(axes, found)
    return None


def _trials(
    wiring: Wiring, name: str, sizes: Mapping[int, Axis], units: int
) -> Iterator[tuple[tuple[Axis, ...], bool]]:
    """Axes to try, and whether the output should then be as it was. A reader's vectors belong to what it gives."""
    shapes = {tensor: wiring.tensors[tensor].shape for tensor in wiring.leaves[name]}
    flat = [
        _axis(tensor, 0, shape[0], sizes, units)
        for tensor, shape in shapes.items()
        if len(shape) == 1 and shape[0] % units == 0
    ]
    options = [
        [None, *(_axis(tensor, dim, size, sizes, units) for dim, size in enumerate(shape) if size % units == 0)]
        for tensor, shape in shapes.items()
        if len(shape) > 1
    ]
    chosen = [tuple(axis for axis in choice if axis is not None) for choice in _first(itertools.product(*options))]
    yield from ((axes, True) for axes in chosen if axes)
    yield from (((*flat, *axes), False) for axes in chosen)
    if flat:
        yield (), False


def _first(choices: Iterable[tuple[Axis | None, ...]]) -> list[tuple[Axis | None, ...]]:
    return list(itertools.islice(choices, _MOST_TRIALS))


def _axis(tensor: str, dim: int, size: int, sizes: Mapping[int, Axis], units: int) -> Axis:
    """Units stand in a dimension as in the argument's of the same size, else one after the other."""
    like = sizes.get(size)
    return Axis(tensor, dim, 1, size // units) if like is None else Axis(tensor, dim, like.before, like.after)
