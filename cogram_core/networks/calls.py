"""Which modules a forward pass calls, in which order and inside of which: found by running it once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Call:
    """One call of a module. ``begin`` and ``end`` count all beginnings and ends of calls of the pass.

    ``numbers`` says how many numbers it gave.
    """

    module: str
    nth: int
    begin: int
    end: int
    parent: int | None
    numbers: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """What the call is known by: its module's name and which of the module's calls it is."""
        return self.module, self.nth


class CallTree:
    """The calls of one forward pass, in the order in which they begin; the first is the network's own."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = tuple(calls)
        self._of: dict[str, list[Call]] = {}
        for call in calls:
            self._of.setdefault(call.module, []).append(call)

    def of(self, module: str) -> list[Call]:
        """A module's calls."""
        return self._of.get(module, [])

    def cut(self, module: str) -> Call:
        """The innermost call inside of which alone the module's tensors can be used, as far as calls tell.

        The module's own call if there is exactly one; else, for a module that is called several times or that others use
        without calling it, the one call of the nearest module around it; at last the network's own.
        """
        own = self.of(module)
        return own[0] if len(own) == 1 else self.around(module)

    def around(self, module: str) -> Call:
        """The one call of the nearest module around ``module`` that is called exactly once."""
        name = module
        while name:
            name = name.rpartition(".")[0]
            if len(own := self.of(name)) == 1:
                return own[0]
        return self.calls[0]

    def around_all(self, cuts: Sequence[Call]) -> Call:
        """The innermost call inside of which all of ``cuts``, at least one, begin and end; perhaps one of them."""
        begin, end = min(cut.begin for cut in cuts), max(cut.end for cut in cuts)
        return max((c for c in self.calls if c.begin <= begin and end <= c.end), key=lambda call: call.begin)

    def before(self, cut: Call) -> list[Call]:
        """The outermost calls that end before ``cut`` begins."""
        done = [call.end < cut.begin for call in self.calls]
        return [call for call, over in zip(self.calls, done, strict=True) if over and not self._inside(call, done)]

    def _inside(self, call: Call, done: list[bool]) -> bool:
        return call.parent is not None and done[call.parent]


def record_calls(network: nn.Module, run: Callable[[], Any]) -> tuple[CallTree, Any]:
    """The calls of the modules of ``network`` while ``run`` runs it, and what ``run`` gives."""
    begun: list[dict[str, Any]] = []
    stack: list[int] = []
    counts: dict[str, int] = {}
    clock = iter(range(2**62))

    def begin(name: str) -> None:
        nth = counts.get(name, 0)
        counts[name] = nth + 1
        begun.append({"module": name, "nth": nth, "begin": next(clock), "parent": stack[-1] if stack else None})
        stack.append(len(begun) - 1)

    def end(output: Any) -> None:
        tensors = [value for value in pytree.tree_leaves(output) if isinstance(value, Tensor)]
        begun[stack.pop()].update(end=next(clock), numbers=sum(tensor.numel() for tensor in tensors))

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: begin(name)))
        handles.append(module.register_forward_hook(lambda _, __, output: end(output)))
    try:
        with torch.no_grad():
            result = run()
    finally:
        for handle in handles:
            handle.remove()
    return CallTree([Call(**entry) for entry in begun]), result


@contextmanager
def replaced(modules: Mapping[str, nn.Module], forwards: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block the named modules' forward passes are these functions."""
    own = {name: modules[name].__dict__["forward"] for name in forwards if "forward" in modules[name].__dict__}
    for name, forward in forwards.items():
        modules[name].__dict__["forward"] = forward
    try:
        yield
    finally:
        for name in forwards:
            del modules[name].__dict__["forward"]
        for name, forward in own.items():
            modules[name].__dict__["forward"] = forward


def rebuilt(value: Any) -> Any:
    """The same tensors in tuples, lists and mappings of its own, which a forward pass may take apart."""
    return pytree.tree_map(lambda leaf: leaf, value)


ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": nn.functional.leaky_relu,
    "elu": nn.functional.elu,
    "softplus": nn.functional.softplus,
}
