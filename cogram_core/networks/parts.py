"""Where a checkpoint's tensors stand in a module: under other names, as parts of larger ones, or in several places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """One of a module's tensors, or an evenly strided part of it: its shape, strides and offset, in elements."""

    tensor: str
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] | None = None
    offset: int = 0

    @property
    def whole(self) -> bool:
        """Whether it is all of the module's tensor."""
        return self.strides is None

    def of(self, tensor: Tensor) -> Tensor:
        """This part of the module's tensor, in the same memory; ``tensor`` is contiguous."""
        if self.strides is None:
            return tensor
        return tensor.as_strided(self.shape, self.strides, tensor.storage_offset() + self.offset)


Parts = Mapping[str, Part]
"""Where each floating tensor of a checkpoint stands, by its name there."""


def own_parts(module: nn.Module) -> dict[str, Part]:
    """A module's floating tensors under their own names; one that stands under several is named once, by the first."""
    seen: set[int] = set()
    found: dict[str, Part] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = Part(name)
    return found


def owners(module: nn.Module) -> dict[int, list[str]]:
    """The modules that have each tensor, by the tensor's identity, in the order of ``named_modules``."""
    found: dict[int, list[str]] = {}
    for name, inner in module.named_modules():
        for tensor in (*inner._parameters.values(), *inner._buffers.values()):
            if tensor is not None:
                found.setdefault(id(tensor), []).append(name)
    return found


def assembled(shape: Sequence[int], parts: Sequence[tuple[Part, Tensor]]) -> Tensor:
    """A module's tensor of ``shape`` made of all its parts and their values; differentiable, and can be mapped over."""
    size = torch.Size(shape)
    places = torch.arange(size.numel(), device=parts[0][1].device).reshape(size)
    order = torch.cat([part.of(places).reshape(-1) for part, _ in parts])
    values = torch.cat([value.reshape(-1) for _, value in parts])
    return values[torch.argsort(order)].reshape(size)
