"""A network that can run, and the units of it that CoGraM decides on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cogram_core.errors import NetworkError, Problem
from cogram_core.networks.calls import Call, CallTree, record_calls
from cogram_core.networks.layers import Layer, LayerValue, layer_of, make_layer, own_tensors
from cogram_core.networks.packing import present
from cogram_core.networks.parts import Part, Parts, assembled, own_parts, owners

# Integers as long as a floating number of so many bytes.
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Network:
    """A module in evaluation mode whose tensors are read and exchanged unit by unit."""

    def __init__(self, module: nn.Module, example: Tensor, parts: Parts | None = None) -> None:
        """Takes over ``module``; ``example`` is a batch of one input, run once to learn the order of the layers.

        ``parts`` says where each floating tensor of the checkpoint stands in the module, all of whose tensors they make
        up; without it names are the module's own, and a tensor with several names goes by the first.

        Raises:
            NetworkError: if the module can't run on the example, or doesn't give one floating output for it.
        """
        self.module = module.eval().requires_grad_(False)
        self._parts = dict(own_parts(module) if parts is None else parts)
        state = module.state_dict(keep_vars=True)
        self._tensors: dict[str, Tensor] = {part.tensor: state[part.tensor] for part in self._parts.values()}
        self.calls, output = _run_once(module, example)
        self.output_shape = tuple(output.shape[1:])
        self._cuts: dict[str, Call] = {}
        self.layers = self._find_layers()

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        device: torch.device = next(iter(self._tensors.values())).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What the tensors are of at the moment."""
        dtype: torch.dtype = next(iter(self._tensors.values())).dtype
        return dtype

    @property
    def names(self) -> tuple[str, ...]:
        """All floating tensors, as the checkpoint calls them."""
        return tuple(self._parts)

    @property
    def parts(self) -> Parts:
        """Where each of these tensors stands in the module."""
        return self._parts

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trainable tensors: what a gradient exists for."""
        return tuple(n for n, part in self._parts.items() if isinstance(self._tensors[part.tensor], nn.Parameter))

    def tensor(self, name: str) -> Tensor:
        """The tensor itself, not a copy."""
        part = self._parts[name]
        return part.of(self._tensors[part.tensor].detach())

    def load(self, value: Callable[[str], Tensor]) -> None:
        """Copies a full state in; ``value`` is asked for one tensor after the other, so that one is held at a time."""
        for name in self._parts:
            self.tensor(name).copy_(value(name))

    def state(self) -> dict[str, Tensor]:
        """A copy of all floating tensors."""
        return {name: self.tensor(name).clone() for name in self._parts}

    def cut(self, layer: Layer) -> Call:
        """The innermost call inside of which alone the layer's tensors can be used, as far as calls tell."""
        return self._cuts[layer.name]

    def module_of(self, layer: Layer) -> nn.Module:
        """The module of a layer that has one."""
        assert layer.module is not None
        return self.module.get_submodule(layer.module)

    def present(self, inputs: Tensor) -> Tensor | None:
        """Which places of token inputs (N, T) are no padding, bool (N, T); None where all are, or there are no tokens."""
        return present(inputs)

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

    def outputs(self, values: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """``logits`` with other values of some tensors, by name; differentiable, and can be mapped over."""
        touched = {self._parts[name].tensor for name in values}
        inner: dict[str, list[tuple[Part, Tensor]]] = {}
        for name, part in self._parts.items():
            if part.tensor in touched:
                inner.setdefault(part.tensor, []).append((part, values[name] if name in values else self.tensor(name)))
        state = {
            name: given[0][1] if given[0][0].whole else assembled(self._tensors[name].shape, given)
            for name, given in inner.items()
        }
        result: Tensor = functional_call(self.module, state, (inputs,))
        return result

    def _find_layers(self) -> tuple[Layer, ...]:
        """The layers in the order in which they complete.

        One whose tensors others use without calling it stands before the module around it that is called.
        """
        owned_by, names = owners(self.module), {part.tensor: name for name, part in self._parts.items()}
        groups: dict[str, list[str]] = {}
        for name in self._parts:
            groups.setdefault(name.rpartition(".")[0], []).append(name)
        places: dict[str, tuple[int, bool]] = {}
        layers = {}
        for group, tensors in groups.items():
            inner = {self._parts[name].tensor: self._tensors[self._parts[name].tensor] for name in tensors}
            homes = list(dict.fromkeys(home for tensor in inner.values() for home in owned_by[id(tensor)]))
            self._cuts[group] = self.calls.around_all([self.calls.cut(home) for home in homes])
            own = self.calls.of(homes[0]) if len(homes) == 1 else []
            places[group] = (own[0].end, True) if own else (self._cuts[group].end, False)
            layers[group] = self._layer(group, tensors, homes, names)
        return tuple(layers[group] for group in sorted(places, key=places.__getitem__))

    def _layer(self, name: str, tensors: list[str], homes: list[str], names: Mapping[str, str]) -> Layer:
        """The layer of these tensors; ``homes`` are the modules that have them, ``names`` what the module's are called."""
        for home in homes:
            own = {
                f"{home}.{inner}" if home else inner: inner for inner in own_tensors(self.module.get_submodule(home))
            }
            called = {inner: names.get(tensor) for tensor, inner in own.items()}
            whole = all(self._parts[tensor].whole for tensor in tensors)
            if whole and sorted(map(str, called.values())) == sorted(tensors):
                given = {inner: str(tensor) for inner, tensor in called.items()}
                found = layer_of(name, self.module.get_submodule(home), given)
                return replace(found, module=home if len(homes) == 1 else None)
        return make_layer(name, {tensor: tuple(self.tensor(tensor).shape) for tensor in tensors}, 0)


def _run_once(module: nn.Module, example: Tensor) -> tuple[CallTree, Tensor]:
    """The calls of one forward pass, and the output."""
    try:
        calls, output = record_calls(module, lambda: module(example))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        first = str(error).splitlines()[0]
        message = f"the network can't run on one example of shape {tuple(example.shape[1:])}: {first}"
        raise NetworkError([Problem("network", "network.cannot_run", message)]) from error
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != example.shape[:1]:
        shape = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        message = f"the network must give one tensor of floating numbers, an entry an example; it gave {shape}"
        raise NetworkError([Problem("network", "network.wrong_output", message)])
    return calls, output
