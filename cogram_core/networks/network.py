"""A network that can run, and the units of it that CoGraM decides on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cogram_core.errors import NetworkError, Problem

Level = Literal["layer", "neuron", "weight"]

# Their weights have one row a neuron, and an entry of the bias.
_ROW_MODULES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layer:
    """One parameterised module: its own floating tensors, statistics of normalisation included.

    ``neurons`` counts its output units, 0 where it has a layer level only.
    """

    name: str
    tensors: tuple[str, ...]
    neurons: int


@dataclass(frozen=True)
class Unit:
    """A layer, or with ``row`` one of its neurons."""

    layer: Layer
    row: int | None = None

    @property
    def kind(self) -> Literal["layer", "neuron"]:
        """The unit's level."""
        return "layer" if self.row is None else "neuron"

    def part_of(self, tensor: Tensor) -> Tensor:
        """The unit's part of one of its layer's tensors, as a view."""
        return tensor if self.row is None else tensor[self.row]


UnitValue = Mapping[str, Tensor]
"""A unit's parameters by tensor name: whole tensors for a layer, one row of each for a neuron."""


class Network:
    """A module in evaluation mode whose tensors are read and exchanged unit by unit."""

    def __init__(self, module: nn.Module, example: Tensor) -> None:
        """Takes over ``module``; ``example`` is a batch of one input, run once to learn the order of the layers.

        Raises:
            NetworkError: if the module can't run on the example, doesn't give one floating output for it, or has one
                tensor under two names.
        """
        _check_untied(module)
        self.module = module.eval().requires_grad_(False)
        self._live = {
            name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if tensor.is_floating_point()
        }
        order, output = _run_once(module, example)
        self.output_shape = tuple(output.shape[1:])
        self.layers = tuple(_layers(module, order))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        device: torch.device = next(iter(self._live.values())).device
        return device

    @property
    def names(self) -> tuple[str, ...]:
        """All floating tensors, in the module's order."""
        return tuple(self._live)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trainable tensors: what a gradient exists for."""
        return tuple(name for name, tensor in self._live.items() if isinstance(tensor, nn.Parameter))

    def tensor(self, name: str) -> Tensor:
        """The tensor itself, not a copy."""
        tensor: Tensor = self._live[name].detach()
        return tensor

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copies a full state in."""
        for name, tensor in self._live.items():
            tensor.detach().copy_(state[name])

    def state(self) -> dict[str, Tensor]:
        """A copy of all floating tensors."""
        return {name: tensor.detach().clone() for name, tensor in self._live.items()}

    def value(self, unit: Unit) -> dict[str, Tensor]:
        """A copy of a unit's parameters."""
        return {name: unit.part_of(self.tensor(name)).clone() for name in unit.layer.tensors}

    def assign(self, unit: Unit, value: UnitValue) -> None:
        """Replaces a unit's parameters in place."""
        for name, tensor in value.items():
            unit.part_of(self.tensor(name)).copy_(tensor)

    def logits(self, inputs: Tensor) -> Tensor:
        """The outputs (N, ...) for inputs (N, ...): class scores, values or token scores, as the data's loss asks."""
        with torch.no_grad():
            result: Tensor = self.module(inputs)
        return result


def _check_untied(module: nn.Module) -> None:
    """Refuses tied tensors: a unit of one layer would silently be one of another, too."""
    first: dict[int, str] = {}
    problems = []
    for name, tensor in module.state_dict(keep_vars=True).items():
        if (other := first.setdefault(id(tensor), name)) != name:
            message = f"is the same tensor as {other}; tied layers can't be fused unit by unit, untie them first"
            problems.append(Problem(f"network: {name}", "network.tied", message))
    if problems:
        raise NetworkError(problems)


def _run_once(module: nn.Module, example: Tensor) -> tuple[list[str], Tensor]:
    """Names of the parameterised modules in the order in which they complete, and the output."""
    order: list[str] = []
    handles = [
        inner.register_forward_hook(lambda *_, name=name: order.append(name) if name not in order else None)
        for name, inner in module.named_modules()
        if _own_tensors(inner)
    ]
    try:
        with torch.no_grad():
            output = module(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).splitlines()[0]
        message = f"the network can't run on one example of shape {tuple(example.shape[1:])}: {first}"
        raise NetworkError([Problem("network", "network.cannot_run", message)]) from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != example.shape[:1]:
        shape = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        message = f"the network must give one tensor of floating numbers, an entry an example; it gave {shape}"
        raise NetworkError([Problem("network", "network.wrong_output", message)])
    return order, output


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own floating tensors that a checkpoint holds, not those of modules inside it."""
    persistent = set(module.state_dict())
    own: Iterable[tuple[str, Tensor | None]] = (*module._parameters.items(), *module._buffers.items())
    return {
        name: tensor for name, tensor in own if tensor is not None and tensor.is_floating_point() and name in persistent
    }


def _layers(module: nn.Module, order: list[str]) -> Iterable[Layer]:
    modules = dict(module.named_modules())
    for name in order:
        inner = modules[name]
        tensors = tuple(f"{name}.{tensor}" if name else tensor for tensor in _own_tensors(inner))
        yield Layer(name, tensors, _neurons(inner))


def _neurons(module: nn.Module) -> int:
    """Output units, where every tensor of the module has a row for each."""
    if not isinstance(module, _ROW_MODULES):
        return 0
    rows = module.weight.shape[0]
    return rows if all(tensor.shape[:1] == (rows,) for tensor in _own_tensors(module).values()) else 0
