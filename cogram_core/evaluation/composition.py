"""Whether a network is nothing but a composition of its modules' calls, so that it may be cut before any of them.

Then what a call gives depends on what it is given and on its own layer alone: not on what another call left behind, nor
on a layer that is called later. Two forward passes, and every call once by itself, show it for all cuts together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cogram_core.errors import FusionStopped
from cogram_core.networks.calls import Call, rebuilt, record_calls, replaced
from cogram_core.networks.network import Network
from cogram_core.stopping import stop_point

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


class _DifferentError(Exception):
    """A call asks for what it didn't ask for in the full pass."""


def is_composition(network: Network, inputs: Tensor, others: Tensor) -> bool:
    """Whether every call by itself gives, to the last bit, what it gave in a full pass over ``inputs``, (N, ...).

    Calls are tried from the output backwards: none that could prepare another runs before it. What the full pass left in
    modules is overwritten first, by a pass over ``others``, (M, ...), in which all outputs are NaN. A layer is disfigured
    once only calls before its cut are left. A call that makes calls is tried with the recorded outputs of these, and must
    give them what they were given. What can't be compared counts as different, and so does all that works in place.
    Networks that learn while they run are recognised before NaN could harm them.
    """
    try:
        record = _Record(network, inputs)
        if record.calls != _places(network.calls.calls) or not record.lasts():
            return False
        _worthless_pass(network, others)
        return _repeats(network, record) and record.untouched()
    except (FusionStopped, MemoryError):
        raise
    except Exception:  # whatever a module does that wants more of a call than its arguments
        return False


def _repeats(network: Network, record: _Record) -> bool:
    cuts = [(network.cut(layer), layer) for layer in network.layers]
    with ExitStack() as disfigured:
        for place, call in sorted(enumerate(record.calls), key=lambda entry: entry[1].end, reverse=True):
            stop_point()
            for cut, layer in cuts:
                if cut.begin > call.end:
                    disfigured.enter_context(network.disfigured(layer))
            cuts = [(cut, layer) for cut, layer in cuts if cut.begin < call.end]
            if not record.repeats(place):
                return False
    return True


class _Record:
    """What every call of a full pass was given, as positional and named arguments, and gave."""

    def __init__(self, network: Network, inputs: Tensor) -> None:
        self._network, self._inputs = network, inputs
        self._modules = dict(network.module.named_modules())
        self._buffers = [(buffer, buffer._version) for buffer in network.module.buffers()]
        self._given: dict[tuple[str, int], Any] = {}
        self._gave: dict[tuple[str, int], Any] = {}
        self._versions: list[tuple[Tensor, int]] = []
        begun: Counter[str] = Counter()
        ended: Counter[str] = Counter()
        handles = []
        for name, module in self._modules.items():
            given = partial(self._keep, self._given, begun, name)
            gave = partial(self._keep, self._gave, ended, name)
            handles.append(module.register_forward_pre_hook(lambda _, *both, keep=given: keep(both), with_kwargs=True))
            handles.append(module.register_forward_hook(lambda _, __, output, keep=gave: keep(output)))
        try:
            tree, _ = record_calls(network.module, lambda: network.module(inputs))
        finally:
            for handle in handles:
                handle.remove()
        self.calls = _places(tree.calls)
        self._inside: dict[int | None, list[Call]] = {}
        for call in self.calls:
            self._inside.setdefault(call.parent, []).append(call)

    def _keep(self, where: dict[tuple[str, int], Any], counts: Counter[str], name: str, value: Any) -> None:
        where[name, counts[name]] = rebuilt(value)
        counts[name] += 1
        self._versions += [(leaf, leaf._version) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]

    def lasts(self) -> bool:
        """Whether a second full pass gives the same, and no buffer was written to."""
        output = self._network.logits(self._inputs)
        buffers = list(self._network.module.buffers())
        kept = [
            buffer is old and old._version == version
            for buffer, (old, version) in zip(buffers, self._buffers, strict=True)
        ]
        return all(kept) and _same(output, self._gave["", 0])

    def untouched(self) -> bool:
        """Whether nothing of it was changed in place."""
        return all(tensor._version == version for tensor, version in self._versions)

    def repeats(self, place: int) -> bool:
        """Whether the call at ``place`` gives now what it gave, with what the calls in it gave."""
        call, inside = self.calls[place], self._inside.get(place, [])
        asked = iter(inside)

        def answer(name: str, *arguments: Any, **named: Any) -> Any:
            inner = next(asked, None)
            if inner is None or inner.module != name or not _same((arguments, named), self._given[inner.key]):
                raise _DifferentError
            return rebuilt(self._gave[inner.key])

        answers: dict[str, Callable[..., Any]] = {inner.module: partial(answer, inner.module) for inner in inside}
        arguments, named = self._given[call.key]
        with replaced(self._modules, answers), torch.no_grad():
            output = self._modules[call.module](*arguments, **named)
        return next(asked, None) is None and _same(output, self._gave[call.key])


def _places(calls: tuple[Call, ...]) -> tuple[Call, ...]:
    """The calls without their sizes, which differ with the number of examples."""
    return tuple(replace(call, numbers=0) for call in calls)


def _worthless_pass(network: Network, inputs: Tensor) -> None:
    """A full pass in which every call gives NaN, so that whatever is kept of it shows wherever it is used."""
    handles = [
        module.register_forward_hook(lambda _, __, output: _worthless(output)) for module in network.module.modules()
    ]
    try:
        network.logits(_worthless(inputs))
    finally:
        for handle in handles:
            handle.remove()


def _worthless(value: Any) -> Any:
    return pytree.tree_map(
        lambda v: torch.full_like(v, math.nan) if isinstance(v, Tensor) and v.is_floating_point() else v, value
    )


def _same(value: Any, other: Any) -> bool:
    leaves, shape = pytree.tree_flatten(value)
    others, other_shape = pytree.tree_flatten(other)
    return shape == other_shape and all(map(_equal, leaves, others))


def _equal(leaf: Any, other: Any) -> bool:
    if isinstance(leaf, Tensor) and isinstance(other, Tensor):
        return leaf.dtype == other.dtype and torch.equal(leaf, other)
    return type(leaf) is type(other) and isinstance(leaf, _PLAIN) and bool(leaf == other)
