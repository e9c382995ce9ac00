"""A network that can run, and the units of it that CoGraM decides on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cogram_core.errors import NetworkError, Problem
from cogram_core.networks.calls import CallTree, record_calls
from cogram_core.networks.layers import Layer, LayerValue, layer_of, own_tensors

# Integers as long as a floating number of so many bytes.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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
        self.calls, output = _run_once(module, example)
        self.output_shape = tuple(output.shape[1:])
        self.layers = tuple(_layers(module, self.calls))

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        device: torch.device = next(iter(self._live.values())).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What the tensors are of at the moment."""
        dtype: torch.dtype = next(iter(self._live.values())).dtype
        return dtype

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

    def load(self, value: Callable[[str], Tensor]) -> None:
        """Copies a full state in; ``value`` is asked for one tensor after the other, so that one is held at a time."""
        for name, tensor in self._live.items():
            tensor.detach().copy_(value(name))

    def state(self) -> dict[str, Tensor]:
        """A copy of all floating tensors."""
        return {name: tensor.detach().clone() for name, tensor in self._live.items()}

    def value(self, layer: Layer) -> dict[str, Tensor]:
        """A copy of a layer's tensors."""
        return {name: self.tensor(name).clone() for name in layer.tensors}

    def assign(self, layer: Layer, value: LayerValue) -> None:
        """Replaces a layer's tensors in place."""
        for name in layer.tensors:
            self.tensor(name).copy_(value[name])

    def rows(self, layer: Layer, first: int, last: int) -> Tensor:
        """Neurons first to last − 1 of a layer as a matrix (last − first, width); a copy."""
        return layer.matrix(lambda name: self.tensor(name)[first:last])

    def assign_row(self, layer: Layer, row: int, value: Tensor) -> None:
        """Replaces a neuron in place; value has shape (width,)."""
        for name, part in layer.split(value[None]).items():
            self.tensor(name)[row].copy_(part[0])

    def assign_weight(self, layer: Layer, row: int, column: int, value: Tensor) -> None:
        """Replaces a single weight in place; value has no dimension."""
        name, place = layer.place(column)
        self.tensor(name)[row].view(-1)[place] = value

    def assign_rows(self, layer: Layer, rows: Tensor, values: Tensor) -> None:
        """Replaces some neurons in place: rows int64 (K,), values (K, width)."""
        for name, parts in layer.split(values).items():
            self.tensor(name)[rows.to(parts.device)] = parts

    def assign_weights(self, layer: Layer, rows: Tensor, columns: Tensor, values: Tensor) -> None:
        """Replaces some single weights in place: rows and columns int64 (K,), values (K,)."""
        first = 0
        for name, shape in zip(layer.tensors, layer.shapes, strict=True):
            size = math.prod(shape[1:])
            here = (columns >= first) & (columns < first + size)
            flat, at = self.tensor(name).view(layer.neurons, size), columns[here] - first
            flat[rows[here].to(flat.device), at.to(flat.device)] = values[here.to(values.device)]
            first += size

    @contextmanager
    def precision(self, dtype: torch.dtype) -> Iterator[None]:
        """Inside the block all floating tensors, buffers that no checkpoint holds included, are of ``dtype``."""
        tensors = [t for t in (*self.module.parameters(), *self.module.buffers()) if t.is_floating_point()]
        kept = [tensor.dtype for tensor in tensors]
        for tensor in tensors:
            tensor.data = tensor.data.to(dtype)
        try:
            yield
        finally:
            for tensor, before in zip(tensors, kept, strict=True):
                tensor.data = tensor.data.to(before)

    @contextmanager
    def disfigured(self, layer: Layer) -> Iterator[None]:
        """Inside the block every bit of a layer's numbers is turned over: far from what they were, without a copy."""
        turned = []
        try:
            for name in layer.tensors:
                tensor = self.tensor(name)
                turned.append(tensor.view(_BITS[tensor.dtype.itemsize]).bitwise_not_())
            yield
        finally:
            for bits in turned:
                bits.bitwise_not_()

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


def _run_once(module: nn.Module, example: Tensor) -> tuple[CallTree, Tensor]:
    """The calls of one forward pass, and the output."""
    try:
        calls, output = record_calls(module, lambda: module(example))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first = str(error).splitlines()[0]
        message = f"the network can't run on one example of shape {tuple(example.shape[1:])}: {first}"
        raise NetworkError([Problem("network", "network.cannot_run", message)]) from error
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != example.shape[:1]:
        shape = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        message = f"the network must give one tensor of floating numbers, an entry an example; it gave {shape}"
        raise NetworkError([Problem("network", "network.wrong_output", message)])
    return calls, output


def _layers(module: nn.Module, calls: CallTree) -> Iterator[Layer]:
    """The parameterised modules in the order in which they complete.

    One that others use without calling it stands before the module around it that is called.
    """
    places = {}
    for name, inner in module.named_modules():
        if own_tensors(inner):
            own = calls.of(name)
            places[name] = (own[0].end, True) if own else (calls.around(name).end, False)
    modules = dict(module.named_modules())
    for name in sorted(places, key=places.__getitem__):
        yield layer_of(name, modules[name])
