"""What a forward pass calls, which tensors it uses when, and which calls are given the very same input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from cogram_core.networks.calls import Call, CallTree, record_calls
from cogram_core.networks.network import Network
from cogram_core.statistics.passes import Key, first_tensor

_VALUES = {"item", "tolist", "numpy"}


@dataclass(frozen=True)
class Uses:
    """One forward pass. ``tensors`` has, for each tensor that is used, the places of its uses.

    A use's place is that of the last beginning or end of a call before it. ``inputs`` has the calls that are given a
    tensor, each with what tells this tensor from all others: calls of one entry are given the very same.
    """

    calls: CallTree
    tensors: Mapping[str, Sequence[int]]
    inputs: Mapping[Key, tuple[int, int]]

    def only_in(self, name: str, module: str) -> bool:
        """Whether a tensor is used, and in calls of this module alone."""
        places, calls = self.tensors.get(name, ()), self.calls.of(module)
        return bool(places) and all(any(call.begin <= place < call.end for call in calls) for place in places)

    def between(self, names: Sequence[str], first: int, last: int) -> list[str]:
        """Which of these tensors a pass uses from one place to another.

        Of a tensor that this pass never used, any use inside the calls around its module counts as possible: other
        examples may take other ways.
        """
        return [name for name in names if self._used(name, first, last)]

    def _used(self, name: str, first: int, last: int) -> bool:
        if (places := self.tensors.get(name)) is not None:
            return any(first <= place < last for place in places)
        around = self.calls.around(name)
        return around.begin < last and first < around.end


Hearer = Callable[[Call, Tensor, Any], None]


def find_uses(network: Network, example: Tensor, heard: Hearer = lambda *_: None) -> Uses:
    """Runs the network once on ``example``, (1, ...).

    ``heard`` is told of every call that is given a tensor, when it ends: the call, what it was given, and its output. What
    it does with the network's tensors doesn't count.
    """
    log = _Log(network)
    calls, _ = record_calls(network.module, lambda: log.run(example, lambda *_: None))
    log = _Log(network)
    log.run(example, lambda key, given, output: heard(calls.of(key[0])[key[1]], given, output))
    return Uses(calls, log.tensors, log.inputs)


class _Log(TorchFunctionMode):
    """Counts beginnings and ends of calls, and writes down what is used between them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.tensors: dict[str, list[int]] = {}
        self.inputs: dict[Key, tuple[int, int]] = {}
        self._module = network.module
        self._owners: dict[int, list[str]] = {}
        for name in network.names:
            if storage := network.tensor(name).untyped_storage().data_ptr():
                self._owners.setdefault(storage, []).append(name)
        self._place = -1
        self._deaf = False
        self._kept: list[Any] = []  # so that no other tensor gets the identity of one that is gone
        self._begun: dict[str, list[Tensor | None]] = {}
        self._ended: dict[str, int] = {}

    def run(self, example: Tensor, heard: Callable[[Key, Tensor, Any], None]) -> None:
        """One forward pass."""
        with ExitStack() as stack:
            for name, module in self._module.named_modules():
                self._hear(stack, name, module, heard)
            stack.enter_context(torch.no_grad())
            stack.enter_context(self)
            self._module(example)

    def _hear(self, stack: ExitStack, name: str, module: nn.Module, heard: Callable[[Key, Tensor, Any], None]) -> None:
        def begin(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self._place += 1
            given = first_tensor(arguments, named)
            begun = self._begun.setdefault(name, [])
            if given is not None:
                self._kept.append(given)
                self.inputs[name, len(begun)] = (id(given), given._version)
            begun.append(given)

        def end(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            nth = self._ended.get(name, 0)
            self._ended[name] = nth + 1
            given = self._begun[name][nth]
            if given is not None:
                with self._unheard():
                    heard((name, nth), given, output)
            self._place += 1

        stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
        stack.callback(module.register_forward_hook(end).remove)

    @contextmanager
    def _unheard(self) -> Any:
        self._deaf = True
        try:
            yield
        finally:
            self._deaf = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Passes every function of torch on, and looks at what it is given."""
        result = func(*args, **(kwargs or {}))
        if not self._deaf and _takes_values(func, result):
            for value in pytree.tree_leaves((args, kwargs)):
                if isinstance(value, Tensor):
                    for name in self._owners.get(value.untyped_storage().data_ptr(), ()):
                        self.tensors.setdefault(name, []).append(self._place)
        return result


def _takes_values(func: Callable[..., Any], result: Any) -> bool:
    """Whether a function gives anything that depends on values; its shape and dtype are asked for in passing."""
    name = getattr(func, "__name__", "")
    return name in _VALUES or any(isinstance(value, Tensor) for value in pytree.tree_leaves(result))
