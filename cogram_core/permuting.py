"""Sources whose hidden units stand in another order than on disk, and how a trace tells of that order."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Axis:
    """Where units stand in a tensor: dimension ``dim`` has ``before`` · units · ``after`` entries.

    Unit u has the entries (b · units + u) · after + a for every b and a: ``before`` counts blocks that each have all
    units, such as queries, keys and values in one tensor; ``after`` what a unit has side by side, such as the places of a
    channel behind a flattening, or the features of a head.
    """

    tensor: str
    dim: int
    before: int = 1
    after: int = 1

    def places(self, order: Tensor) -> Tensor:
        """Which old entries of the dimension the new ones are, int64; ``order`` has the old unit of each new one."""
        units = len(order)
        blocks = torch.arange(self.before)[:, None, None] * units
        return ((blocks + order[None, :, None]) * self.after + torch.arange(self.after)).flatten()


def permuted(tensor: Tensor, axes: Sequence[tuple[Axis, Tensor]]) -> Tensor:
    """The tensor with its units in another order; ``axes`` in the order in which they were permuted, each with its order."""
    for axis, order in axes:
        tensor = tensor.index_select(axis.dim, axis.places(order).to(tensor.device))
    return tensor


def check_permutations(axes: Sequence[Axis], permutations: Tensor, shapes: Mapping[str, Sequence[int]]) -> None:
    """Checks that units can be put in these orders.

    Args:
        axes: every place in which the units stand.
        permutations: int64 (sources, units): new unit u of source i is its old unit permutations[i, u].
        shapes: of the sources' tensors.

    Raises:
        ValueError: if an axis is none of its tensor's, or a row is no permutation.
    """
    units = permutations.shape[1]
    for axis in axes:
        shape = shapes.get(axis.tensor)
        if shape is None or not 0 <= axis.dim < len(shape) or axis.before < 1 or axis.after < 1:
            raise ValueError(f"{axis} is no axis of a tensor")
        if shape[axis.dim] != axis.before * units * axis.after:
            raise ValueError(f"{axis} doesn't hold {units} units: the dimension has {shape[axis.dim]} entries")
    if not bool((permutations.sort(dim=1).values == torch.arange(units)).all()):
        raise ValueError("an order of units names one twice, or one that isn't there")


def pack_alignment(axes: Sequence[Axis], permutations: Tensor) -> bytes:
    """Axes and orders as bytes, for a row of a trace; ``permutations`` as for ``check_permutations``."""
    head = json.dumps(
        {
            "axes": [[axis.tensor, axis.dim, axis.before, axis.after] for axis in axes],
            "shape": list(permutations.shape),
        }
    ).encode()
    return _LENGTH.pack(len(head)) + head + permutations.cpu().numpy().astype("<u4").tobytes()


def unpack_alignment(payload: bytes) -> tuple[list[Axis], Tensor]:
    """The axes and the orders, int64 (sources, units), again.

    Raises:
        ValueError: if the payload is none.
    """
    try:
        (length,) = _LENGTH.unpack_from(payload)
        head = json.loads(payload[_LENGTH.size : _LENGTH.size + length])
        axes = [Axis(str(tensor), int(dim), int(before), int(after)) for tensor, dim, before, after in head["axes"]]
        shape = tuple(map(int, head["shape"]))
        numbers = payload[_LENGTH.size + length :]
    except (struct.error, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its payload tells no alignment ({error})") from error
    if len(shape) != 2 or min(shape) < 0 or len(numbers) != 4 * math.prod(shape):
        raise ValueError(f"{len(numbers)} bytes of orders of shape {list(shape)}")
    return axes, torch.from_numpy(np.frombuffer(numbers, "<u4").astype(np.int64).reshape(shape))
