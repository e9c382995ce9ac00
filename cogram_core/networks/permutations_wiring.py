"""What flows between the modules of a network that have tensors: what each is given and gives, and where it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cogram_core.networks.calls import CallTree, record_calls, replaced
from cogram_core.networks.layers import own_tensors
from cogram_core.networks.network import Network
from cogram_core.permuting import Axis, permuted

Key = tuple[str, int]
Answer = Callable[[Key, Any], Any]
OUTPUT: Key = ("", -1)
"""Stands for who is given the network's output."""


class UnknownCallError(Exception):
    """A pass with other values calls other modules."""


class Wiring:
    """One forward pass of a network, taken apart at its *leaves*: called modules with tensors and no such call inside.

    ``leaves`` has each leaf's tensors, those of modules inside that are used without being called included; ``loose`` the
    tensors of modules that aren't leaves; ``tensors`` all of them, by the module's names, not the checkpoint's.
    ``given`` and ``gave`` have arguments and outputs of each call of a leaf, ``feeds`` the leaves and loose tensors from
    which something reaches the call, through no other leaf.
    """

    def __init__(self, network: Network, inputs: Tensor) -> None:
        """Runs the network on ``inputs``, with the values that it holds, once without and once with gradients."""
        self.inputs = inputs
        live = network.module.state_dict(keep_vars=True)
        self.tensors = {part.tensor: live[part.tensor].detach() for part in network.parts.values()}
        self._module = network.module
        self._modules = dict(network.module.named_modules())
        with plain_attention():
            calls, self.output = record_calls(network.module, lambda: network.module(inputs))
        self.leaves, self.loose = _leaves(network, calls)
        self._forward = {name: self._modules[name].forward for name in self.leaves}
        self.given: dict[Key, Any] = {}
        self.gave: dict[Key, Any] = {}
        with torch.no_grad():
            self.force(self._recording)
        self.feeds = self._found_feeds()

    def force(self, answer: Answer) -> Any:
        """The network's output where each call of a leaf gives what ``answer(key, arguments)`` says."""
        counts: Counter[str] = Counter()

        def forward(name: str) -> Callable[..., Any]:
            def forced(*arguments: Any, **named: Any) -> Any:
                key = name, counts[name]
                counts[name] += 1
                return answer(key, (arguments, named))

            return forced

        with plain_attention(), replaced(self._modules, {name: forward(name) for name in self.leaves}):
            return self._module(self.inputs)

    def run_leaf(self, name: str, arguments: Any, axes: Iterable[Axis], order: Tensor) -> Any:
        """What a leaf gives for arguments as in ``given``, with its tensors' units in another order."""
        with self.rearranged(axes, order), plain_attention(), torch.no_grad():
            return self._forward[name](*arguments[0], **arguments[1])

    def rearranged(self, axes: Iterable[Axis], order: Tensor) -> AbstractContextManager[None]:
        """Inside the block units of the network's tensors stand in another order."""
        return rearranged(self.tensors, [(axis, order) for axis in axes])

    def run(self) -> Tensor:
        """The network's output."""
        with plain_attention(), torch.no_grad():
            output: Tensor = self._module(self.inputs)
        return output

    def calls_of(self, name: str) -> list[Key]:
        """A leaf's calls."""
        return [key for key in self.given if key[0] == name]

    def recorded(self, key: Key) -> Any:
        """A call's output, in memory that the rest of the pass may overwrite.

        Raises:
            UnknownCallError: if there was no such call.
        """
        if key not in self.gave:
            raise UnknownCallError
        return _copy(self.gave[key])

    def _recording(self, key: Key, arguments: Any) -> Any:
        self.given[key] = _copy(arguments)
        output = self._forward[key[0]](*arguments[0], **arguments[1])
        self.gave[key] = _copy(output)
        return output

    def _found_feeds(self) -> dict[Key, frozenset[str]]:
        """By automatic differentiation: whoever has a gradient has a part in what arrives."""
        arrived: dict[Key, list[Tensor]] = {}
        sources: list[tuple[str, Tensor]] = []

        def answer(key: Key, arguments: Any) -> Any:
            arrived[key] = floats(arguments)
            output = self.recorded(key)
            fresh = [value.requires_grad_() for value in floats(output)]
            sources.extend((key[0], value) for value in fresh)
            return with_floats(output, [value * 1 for value in fresh])  # what follows may change it in place

        with torch.enable_grad(), _with_gradients(self._module, self.loose) as loose:
            arrived[OUTPUT] = floats(self.force(answer))
            sources.extend(loose.items())
            return {key: _reaching(values, sources) for key, values in arrived.items()}


def _reaching(values: list[Tensor], sources: list[tuple[str, Tensor]]) -> frozenset[str]:
    sums = [value.sum() for value in values if value.requires_grad]
    if not sums:
        return frozenset()
    found = torch.autograd.grad(sums, [tensor for _, tensor in sources], allow_unused=True, retain_graph=True)
    return frozenset(name for (name, _), gradient in zip(sources, found, strict=True) if gradient is not None)


def _leaves(network: Network, calls: CallTree) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Each leaf's tensors, and the others."""
    held: dict[str, list[str]] = {}
    live = network.module.state_dict(keep_vars=True)
    names = {id(live[part.tensor]): part.tensor for part in network.parts.values()}
    for module, inner in network.module.named_modules():
        holder = module
        while holder and not calls.of(holder):
            holder = holder.rpartition(".")[0]
        for tensor in own_tensors(inner).values():
            held.setdefault(holder, []).append(names[id(tensor)])
    around = {parent for call in calls.calls if call.module in held for parent in _parents(calls, call.parent)}
    leaves = {name: tuple(tensors) for name, tensors in held.items() if name not in around}
    return leaves, tuple(tensor for name, tensors in held.items() if name in around for tensor in tensors)


def _parents(calls: CallTree, place: int | None) -> Iterator[str]:
    while place is not None:
        yield calls.calls[place].module
        place = calls.calls[place].parent


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside the block torch's own encoder layers call the modules in them, instead of one kernel for all."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def rearranged(tensors: Mapping[str, Tensor], orders: Iterable[tuple[Axis, Tensor]]) -> Iterator[None]:
    """Inside the block units of these tensors stand in another order: along each axis, new unit u is old unit order[u]."""
    done: list[tuple[Tensor, Axis, Tensor]] = []
    try:
        for axis, order in orders:
            _move(tensors[axis.tensor], axis, order)
            done.append((tensors[axis.tensor], axis, order))
        yield
    finally:
        for tensor, axis, order in reversed(done):  # back again, which takes less memory than copies of all
            _move(tensor, axis, torch.argsort(order))


def _move(tensor: Tensor, axis: Axis, order: Tensor) -> None:
    tensor.copy_(permuted(tensor, [(axis, order)]))


@contextmanager
def _with_gradients(module: nn.Module, names: Iterable[str]) -> Iterator[Mapping[str, Tensor]]:
    """Inside the block these tensors themselves take part in differentiation."""
    live = module.state_dict(keep_vars=True)
    with ExitStack() as stack:
        for name in names:
            live[name].requires_grad_(True)
            stack.callback(live[name].requires_grad_, False)
        yield {name: live[name] for name in names}


def floats(value: Any) -> list[Tensor]:
    """The floating tensors in nested tuples, lists and mappings, in one order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def integers(value: Any) -> list[Tensor]:
    """All other tensors, in one order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and not leaf.is_floating_point()]


def with_floats(value: Any, tensors: Iterable[Tensor]) -> Any:
    """The same nesting with other floating tensors, in the order of ``floats``."""
    rest = iter(tensors)
    return pytree.tree_map(
        lambda leaf: next(rest) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, value
    )


def _copy(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)
