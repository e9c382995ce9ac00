"""Orders of units by the likeness of weights: one group after the other, until nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cogram_core.methods.align.assignment import best_order
from cogram_core.networks.permutations import Group
from cogram_core.permuting import Axis, permuted
from cogram_core.seeding import generator
from cogram_core.stopping import stop_point

Read = Callable[[str], Tensor]

_MOST_SWEEPS = 100
_GAIN = 1e-9  # of the whole, which is less than what rounding moves


class WeightMatching:
    """Two networks, and orders for the units of the second, in which its weights are most like the first's."""

    def __init__(
        self, first: Read, second: Read, groups: Sequence[Group], parameters: Sequence[str], seed: int
    ) -> None:
        """The networks' tensors are read whenever they are needed; only ``parameters`` count, not statistics."""
        self._first, self._second, self._groups, self._seed = first, second, groups, seed
        known = set(parameters)
        self._axes = [[axis for axis in group.axes if axis.tensor in known] for group in groups]
        self._of: dict[str, list[tuple[Axis, int]]] = {}
        for number, axes in enumerate(self._axes):
            for axis in axes:
                self._of.setdefault(axis.tensor, []).append((axis, number))

    def orders(self) -> list[Tensor]:
        """For each group an order, int64 (units,), that maximises Σ ⟨θ, π(θ′)⟩ over all tensors with hidden units.

        A coordinate descent that takes groups in a seeded random order and gives each its best order in turn ends in an
        optimum that no single group can better. It begins once with the order as it is and once with one found from front
        to back, by the weights whose other units are in order already; the better end counts, on ties the first.

        Source: Ainsworth et al. 2023, arXiv:2209.04836, algorithm 1.
        """
        as_it_is: list[Tensor] = [torch.arange(group.units) for group in self._groups]
        ends = [self._descended(as_it_is, "as it is"), self._descended(self._front_to_back(), "front to back")]
        values = [self._value(end) for end in ends]
        return ends[1] if values[1] > values[0] + _GAIN * abs(values[0]) else ends[0]

    def _front_to_back(self) -> list[Tensor]:
        orders: list[Tensor] = [torch.arange(group.units) for group in self._groups]
        for number in range(len(self._groups)):
            ready = [axis for axis in self._axes[number] if all(n <= number for _, n in self._of[axis.tensor])]
            if ready:
                orders[number] = best_order(self._likeness(number, ready, orders))
        return orders

    def _descended(self, start: Sequence[Tensor], label: str) -> list[Tensor]:
        orders = list(start)
        for sweep in range(_MOST_SWEEPS):
            changed = False
            for number in generator(self._seed, "align", label, sweep).permutation(len(self._groups)):
                stop_point()
                changed |= self._improve(int(number), orders)
            if not changed:
                break
        return orders

    def _improve(self, number: int, orders: list[Tensor]) -> bool:
        """Gives one group its best order, if that is better than the one it has."""
        likeness = self._likeness(number, self._axes[number], orders).cpu()
        order = best_order(likeness)
        places = torch.arange(len(order))
        gain = float((likeness[places, order] - likeness[places, orders[number]]).sum())
        if gain <= _GAIN * float(likeness.abs().max()):
            return False
        kept, orders[number] = orders[number], order
        if self._twice(number) and self._value(orders) <= self._value([*orders[:number], kept, *orders[number + 1 :]]):
            orders[number] = kept
            return False
        return True

    def _twice(self, number: int) -> bool:
        """Whether some tensor has the group's units along two dimensions, so that likeness isn't all that is gained."""
        return len({axis.tensor for axis in self._axes[number]}) < len(self._axes[number])

    def _likeness(self, number: int, axes: Sequence[Axis], orders: Sequence[Tensor]) -> Tensor:
        """Float64 (units, units): Σ over ``axes`` of the inner products of the first's units with the second's.

        The other dimensions of the second's tensors are in the orders that there are.
        """
        units = self._groups[number].units
        total = torch.zeros(units, units, dtype=torch.float64)
        for axis in axes:
            others = [(other, orders[n]) for other, n in self._of[axis.tensor] if other != axis]
            first = _by_units(self._first(axis.tensor), axis, units)
            second = _by_units(permuted(self._second(axis.tensor), others), axis, units)
            total += (first @ second.T).cpu()
        return total

    def _value(self, orders: Sequence[Tensor]) -> float:
        total = 0.0
        for tensor, axes in self._of.items():
            moved = permuted(self._second(tensor), [(axis, orders[number]) for axis, number in axes])
            total += float((self._first(tensor).double() * moved.double()).sum())
        return total


def _by_units(tensor: Tensor, axis: Axis, units: int) -> Tensor:
    """(units, …): all numbers of each unit."""
    first = tensor.double().movedim(axis.dim, 0)
    return first.reshape(axis.before, units, axis.after, -1).transpose(0, 1).reshape(units, -1)
