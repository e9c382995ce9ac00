"""Which units of a network can change places without changing what it computes, found by trying it.

No list of architectures: the network's own modules are asked. What is found on random values of its tensors holds for all
values; what a trained network happens to do, such as a branch that is nearly zero, can't mislead the search.

    permutations         the groups of units, in the checkpoint's names
    permutations_search  a group: suppose that some units are one, and follow them through the network
    permutations_leaves  what one module does to units in another order
    permutations_wiring  what flows between the modules
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cogram_core.networks.network import Network
from cogram_core.networks.permutations_leaves import cycle, moved, moves_between
from cogram_core.networks.permutations_search import UNREAD, Found, Place, Search, close
from cogram_core.networks.permutations_wiring import Wiring, plain_attention, rearranged
from cogram_core.permuting import Axis
from cogram_core.seeding import generator

__all__ = ["Group", "Place", "Symmetry", "find_symmetry", "preserves"]

_MOST_EXAMPLES = 8
_MOST_NUMBERS = 2**16
_MOST_DRAWS = 8
_MANY_PLACES = 64  # that differ from each other as two examples do


@dataclass(frozen=True)
class Group:
    """Hidden units that can stand in any order, if all axes of all tensors that carry them are put in that order.

    ``layer`` is the first of the layers that make them, ``axes`` has tensors by the checkpoint's names, and ``readers``
    where the units are read, one place for each distinct value. In ``features`` a unit has so many rows side by side:
    those of an attention head, or 1.
    """

    layer: str
    units: int
    features: int
    axes: tuple[Axis, ...]
    readers: tuple[Place, ...]


@dataclass(frozen=True)
class Symmetry:
    """The groups of a network, front to back, and why units of other layers are left alone, by layer."""

    groups: tuple[Group, ...]
    left: dict[str, str]


def find_symmetry(network: Network, inputs: Tensor) -> Symmetry:
    """Every group of hidden units that can be permuted.

    Args:
        network: its values are lost; random ones are left in it.
        inputs: examples, (N, ...); of numbers their shape alone matters, of token ids the fullest rows are taken.
    """
    for draw in range(_MOST_DRAWS):
        with torch.no_grad():
            network.load(partial(_random_values, network, draw))
        wiring = Wiring(network, _some_inputs(inputs, draw))
        found, reasons = Search(wiring).groups()
        if UNREAD not in reasons.values():  # by bad luck all units of a small layer may be silent
            break
    names = {name: _layer_name(network, wiring, name) for name in wiring.leaves}
    grouped = {names[module] for entry in found for module in entry.writers}  # a tied head goes by the embedding's name
    left = {names[module]: reason for module, reason in reasons.items() if names[module] not in grouped}
    groups = []
    for entry in found:
        layer, axes = names[entry.writers[0]], _in_checkpoint(network, wiring, entry)
        if axes is None:
            left[layer] = "its units stand in several tensors of the checkpoint"
        else:
            groups.append(Group(layer, entry.units, entry.features, axes, entry.readers))
    return Symmetry(tuple(groups), left)


def preserves(network: Network, inputs: Tensor, orders: Sequence[tuple[Group, Tensor]]) -> bool:
    """Whether the network, with the values that it holds, computes the same with some groups' units in other orders.

    Outputs that overflow anyway tell nothing.
    """
    tensors = {axis.tensor: network.tensor(axis.tensor) for group, _ in orders for axis in group.axes}
    with plain_attention():
        expected = network.logits(inputs)
        with rearranged(tensors, [(axis, order) for group, order in orders for axis in group.axes]):
            found = network.logits(inputs)
    told = torch.isfinite(expected)
    return close(torch.where(told, expected, 0.0), torch.where(told, found, 0.0))


def _layer_name(network: Network, wiring: Wiring, module: str) -> str:
    tensor = wiring.leaves[module][0]
    return next(name for name, part in network.parts.items() if part.tensor == tensor).rpartition(".")[0]


def _in_checkpoint(network: Network, wiring: Wiring, found: Found) -> tuple[Axis, ...] | None:
    """The axes by the checkpoint's names; None where units would have to leave a tensor for another.

    What becomes of a part of a module's tensor is seen from the random values in it.
    """
    axes = []
    for axis in found.axes:
        whole = wiring.tensors[axis.tensor]
        after = moved(whole, axis, cycle(found.units))
        for name, part in network.parts.items():
            if part.tensor != axis.tensor:
                continue
            if part.whole:
                axes.append(Axis(name, axis.dim, axis.before, axis.after))
                continue
            moves = moves_between(part.of(whole), part.of(after), found.units)
            if moves is None:
                return None
            axes += [Axis(name, place.dim, place.before, place.after) for place in moves.values()]
    return tuple(axes)


def _some_inputs(inputs: Tensor, draw: int) -> Tensor:
    if not inputs.is_floating_point():
        fullest = (inputs >= 0).flatten(1).sum(1).argsort(descending=True, stable=True)
        return inputs[fullest[: 2 if inputs.shape[1:].numel() < _MANY_PLACES else 1]]
    shape = inputs.shape[1:]
    # Several, so that no unit is silent on all of them; of large ones two have places enough.
    count = min(_MOST_EXAMPLES, max(2, _MOST_NUMBERS // max(1, shape.numel())))
    return torch.from_numpy(generator(draw, "symmetry").standard_normal((count, *shape))).to(inputs)


def _random_values(network: Network, draw: int, name: str) -> Tensor:
    """Numbers for a tensor with which signals keep their size from layer to layer, and few units are silent.

    The names tell only what makes good numbers: a variance must be positive, a shift should be small.
    """
    tensor = network.tensor(name)
    drawn = generator(draw, "symmetry", name).standard_normal(tuple(tensor.shape), dtype=np.float32)
    noise = torch.as_tensor(drawn).to(tensor)
    if tensor.ndim < 2:
        return 0.2 * noise if name.endswith(("bias", "mean")) else (0.2 * noise).exp()
    return noise * math.sqrt(2 * tensor.shape[0] / max(1, tensor.numel()))
