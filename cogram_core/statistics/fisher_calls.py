"""A batch's forward pass with every call of a module that has parameters kept, for the gradients of its single examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from cogram_core.networks.network import Network
from cogram_core.statistics.fisher_gradients import Addend, Summed, rule_of

Key = tuple[str, int]
"""A call: its module's name, and which of the module's calls it is."""
CallRule = Callable[[list[list[Tensor]]], dict[str, Addend]]
Sizes = tuple[int | None, ...]
"""The first dimension of each of some values; None for what is no tensor or has none."""


@dataclass(frozen=True)
class Owner:
    """A module that is called, and tensors to which its calls alone are to give gradients, by their names inside of it."""

    module: nn.Module
    tensors: Mapping[str, str]


@dataclass(frozen=True)
class Seen:
    """One call of an owner: what it was given, flat and as it was nested, and where the gradients of its outputs arrive.

    ``shapes`` are those of these outputs.
    """

    owner: Owner
    given: list[Any]
    nesting: pytree.TreeSpec
    edges: list[GradientEdge]
    shapes: list[torch.Size]

    def sizes(self) -> Sizes:
        """Of what it was given, and then of its outputs."""
        given = (leaf.shape if isinstance(leaf, Tensor) else () for leaf in self.given)
        return tuple(shape[0] if shape else None for shape in (*given, *self.shapes))


def owners(network: Network, names: Collection[str]) -> dict[str, Owner]:
    """The module of each of these parameters, or the nearest around it that is called, by the module's name.

    Those that are parts of a module's tensor are left out.
    """
    live = network.module.state_dict(keep_vars=True)
    whole = {name: network.parts[name].tensor for name in names if network.parts[name].whole}
    tensors = {id(live[tensor]): name for name, tensor in whole.items()}
    found: dict[str, dict[str, str]] = {}
    for name, module in network.module.named_modules():
        for own, tensor in module._parameters.items():
            if id(tensor) not in tensors:
                continue
            caller = name
            while caller and not network.calls.of(caller):
                caller = caller.rpartition(".")[0]
            inner = f"{name}.{own}" if name else own
            found.setdefault(caller, {})[inner.removeprefix(f"{caller}.")] = tensors[id(tensor)]
    return {name: Owner(network.module.get_submodule(name), entries) for name, entries in found.items()}


class Batch:
    """One forward pass, and what its backward passes give."""

    def __init__(
        self,
        network: Network,
        owned: Mapping[str, Owner],
        leaves: Mapping[str, Tensor],
        inputs: Tensor,
        shared: frozenset[Key] = frozenset(),
    ) -> None:
        """Runs the network on inputs (B, ...) with ``leaves`` as its parameters.

        Outputs of the calls in ``shared``, which are the same for all examples, are handed on once for each; in a first
        dimension of one, or before the first.
        """
        self.seen: dict[Key, Seen] = {}
        self._size, self._shared = len(inputs), shared
        with torch.enable_grad(), self._heard(owned):
            self.outputs = network.outputs(leaves, inputs)

    @contextmanager
    def _heard(self, owned: Mapping[str, Owner]) -> Iterator[None]:
        counts: Counter[str] = Counter()

        def hear(name: str, given: Any, output: Any) -> Any:
            key = (name, counts[name])
            counts[name] += 1
            if key in self._shared and isinstance(output, Tensor):
                output = output.expand(self._size, *output.shape[output.shape[0] == 1 :])
            self._keep(key, owned[name], given, output)
            return output

        handles = [
            owner.module.register_forward_hook(
                lambda _, args, named, output, name=name: hear(name, (args, named), output), with_kwargs=True
            )
            for name, owner in owned.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, key: Key, owner: Owner, given: Any, output: Any) -> None:
        flat, nesting = pytree.tree_flatten(given)
        given = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in flat]
        left = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        # An edge, and not the tensor: what follows may overwrite that in place.
        edges = [get_gradient_edge(leaf) for leaf in left]
        self.seen[key] = Seen(owner, given, nesting, edges, [leaf.shape for leaf in left])

    def gradients(
        self, direction: Tensor, further: Mapping[str, Tensor]
    ) -> tuple[dict[Key, list[Tensor]], dict[str, Tensor]]:
        """Gradients of ⟨direction, outputs⟩ by the outputs of each call that one reaches.

        And by the tensors ``further``, of those that one reaches.
        """
        if not self.outputs.requires_grad:
            return {}, {}
        edges: list[Any] = [edge for call in self.seen.values() for edge in call.edges]
        edges += further.values()
        ready = iter(torch.autograd.grad(self.outputs, edges, direction, retain_graph=True, allow_unused=True))
        arrived = {}
        for key, call in self.seen.items():
            own = [next(ready) for _ in call.edges]
            if any(gradient is not None for gradient in own):
                pairs = zip(own, call.shapes, strict=True)
                arrived[key] = [direction.new_zeros(shape) if entry is None else entry for entry, shape in pairs]
        return arrived, {name: entry for name, entry in zip(further, ready, strict=True) if entry is not None}


def rule_for(call: Seen, batched: tuple[bool, ...], examples: int, leaves: Mapping[str, Tensor]) -> CallRule:
    """What a call adds to the gradients of its owner's tensors.

    Args:
        call: the call.
        batched: which of its ``given`` have an entry for every example; the others are the same for all.
        examples: B.
        leaves: the network's parameters.

    Returns:
        A function that gives the addends by the tensors' names, from the gradients of the call's outputs, (B, ...) each, for
        each of R directions. It raises a RuntimeError, TypeError, ValueError or LookupError if the module can't run again on
        single examples.
    """
    known = rule_of(call.owner.module)
    if known is None or len(call.given) != 1 or len(call.shapes) != 1:
        return partial(_recomputed, call, batched, leaves)
    given = call.given[0]
    rule = known(
        call.owner.module, given if batched[0] else given.expand(examples, *given.shape[given.shape[0] == 1 :])
    )

    def by_name(gradients: list[list[Tensor]]) -> dict[str, Addend]:
        found = rule([gradient for (gradient,) in gradients])
        return {name: found[inner] for inner, name in call.owner.tensors.items()}

    return by_name


def _recomputed(
    call: Seen, batched: tuple[bool, ...], leaves: Mapping[str, Tensor], gradients: list[list[Tensor]]
) -> dict[str, Addend]:
    """By running the module alone, each example by itself."""
    own = {inner: leaves[name].detach() for inner, name in call.owner.tensors.items()}

    def one(parts: list[Tensor], cotangents: list[Tensor]) -> dict[str, Tensor]:
        ready = iter(parts)
        flat = [next(ready)[None] if moved else entry for entry, moved in zip(call.given, batched, strict=True)]
        args, named = pytree.tree_unflatten(flat, call.nesting)

        def outputs(values: dict[str, Tensor]) -> list[Tensor]:
            left = pytree.tree_leaves(functional_call(call.owner.module, values, args, named))
            return [leaf for leaf in left if isinstance(leaf, Tensor) and leaf.is_floating_point()]

        pull = vjp(outputs, own)[1]
        pulled: dict[str, Tensor] = vmap(lambda entries: pull([entry[None] for entry in entries])[0])(cotangents)
        return pulled

    parts = [entry for entry, moved in zip(call.given, batched, strict=True) if moved]
    with sdpa_kernel(SDPBackend.MATH):  # the only one that can be mapped over examples
        found = vmap(one)(parts, [torch.stack(entries, dim=1) for entries in zip(*gradients, strict=True)])
    return {name: Summed(found[inner]) for inner, name in call.owner.tensors.items()}
