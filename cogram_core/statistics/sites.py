"""Where a network's tensors can be solved for: its linear layers in groups that share their input, norms, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from cogram_core.networks.calls import Call
from cogram_core.networks.layers import own_tensors
from cogram_core.networks.network import Network
from cogram_core.statistics.designs import Design, FeatureDesign, NormalisedDesign, feature_axes, fits, linear_design
from cogram_core.statistics.uses import Uses, find_uses

Kind = Literal["linear", "features", "normalised", "embedding"]


@dataclass(frozen=True)
class Member:
    """A module that is solved for.

    ``tensors`` has what the checkpoint calls each of its own tensors; ``design`` makes its equations as the module stands,
    None of an embedding.
    """

    module: str
    tensors: Mapping[str, str]
    design: Callable[[], Design] | None


@dataclass(frozen=True)
class Site:
    """Modules that are solved for together, for they are given the very same input.

    ``calls`` are those of the first member, ``ends`` has the first call of each.
    """

    kind: Kind
    members: tuple[Member, ...]
    calls: tuple[Call, ...]
    ends: tuple[Call, ...]

    @property
    def last(self) -> Call:
        """The members' call that ends last."""
        return max(self.ends, key=lambda call: call.end)

    @property
    def names(self) -> list[str]:
        """The tensors that are solved for."""
        return [name for member in self.members for name in member.tensors.values()]


@dataclass(frozen=True)
class Plan:
    """What can be solved for, in the order in which the network runs, and which tensors the network uses when."""

    uses: Uses
    sites: tuple[Site, ...]

    @property
    def names(self) -> set[str]:
        """All tensors that are solved for."""
        return {name for site in self.sites for name in site.names}


def find_plan(network: Network, example: Tensor, kinds: Sequence[Kind]) -> Plan:
    """Runs the network on ``example``, (1, ...), and finds all sites of these kinds.

    A module belongs to one if its tensors are used in its own calls alone, and what it gave on the example is what its
    equations say. All others are none: tied tensors, tensors that others use, modules that were not called.
    """
    search = _Search(network, kinds)
    uses = find_uses(network, example, search.hear)
    return Plan(uses, tuple(sorted(search.sites(uses), key=lambda site: site.calls[0].begin)))


@dataclass
class _Candidate:
    kind: Kind
    module: nn.Module
    tensors: dict[str, str]
    makers: list[Callable[[], Design]]
    heard: int = 0


class _Search:
    def __init__(self, network: Network, kinds: Sequence[Kind]) -> None:
        places = {(network.tensor(name).data_ptr(), tuple(network.tensor(name).shape)): name for name in network.names}
        self._candidates: dict[str, _Candidate] = {}
        for name, module in network.module.named_modules():
            own = own_tensors(module)
            tensors = {inner: places.get((tensor.data_ptr(), tuple(tensor.shape))) for inner, tensor in own.items()}
            known = {inner: found for inner, found in tensors.items() if found is not None}
            if not own or len(known) != len(own) or any(tensor.numel() == 0 for tensor in own.values()):
                continue
            kind, makers = _kind(module)
            if kind in kinds and kind is not None:
                self._candidates[name] = _Candidate(kind, module, known, makers)

    def hear(self, call: Call, given: Tensor, output: Any) -> None:
        """Keeps the designs that hold of every call."""
        candidate = self._candidates.get(call.module)
        if candidate is None:
            return
        candidate.heard += 1
        values = {inner: tensor.detach() for inner, tensor in own_tensors(candidate.module).items()}
        candidate.makers = [make for make in candidate.makers if fits(make(), values, given, output)][:1]

    def sites(self, uses: Uses) -> list[Site]:
        """The sites of candidates that turned out to be what they seemed, linear ones in groups."""
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, candidate in self._candidates.items():
            if not self._holds(name, candidate, uses):
                continue
            calls = uses.calls.of(name)
            key: tuple[Any, ...] = (name,)
            if candidate.kind == "linear" and len(calls) == 1 and calls[0].key in uses.inputs:
                key = (uses.inputs[calls[0].key], calls[0].parent, candidate.makers[0]().key)
            groups.setdefault(key, []).append(name)
        return [
            self._site(sorted(names, key=lambda name: uses.calls.of(name)[0].begin), uses) for names in groups.values()
        ]

    def _holds(self, name: str, candidate: _Candidate, uses: Uses) -> bool:
        calls = uses.calls.of(name)
        if not calls or candidate.heard != len(calls):
            return False
        if candidate.kind != "linear" and len(calls) != 1:
            return False
        if candidate.kind != "embedding" and not candidate.makers:
            return False
        return all(uses.only_in(tensor, name) for tensor in candidate.tensors.values())

    def _site(self, names: Sequence[str], uses: Uses) -> Site:
        members = []
        for name in names:
            candidate = self._candidates[name]
            design = candidate.makers[0] if candidate.makers else None
            members.append(Member(name, candidate.tensors, design))
        ends = tuple(uses.calls.of(name)[0] for name in names)
        return Site(self._candidates[names[0]].kind, tuple(members), tuple(uses.calls.of(names[0])), ends)


def _kind(module: nn.Module) -> tuple[Kind | None, list[Callable[[], Design]]]:
    """What a module may be, and what makes its equations then."""
    if (design := linear_design(module)) is not None:
        return "linear", [lambda: design]
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        batch = {"weight", "bias", "running_mean", "running_var"}
        return ("normalised", [lambda: NormalisedDesign(module)]) if own_tensors(module).keys() == batch else (None, [])
    if isinstance(module, nn.Embedding):
        return "embedding", []
    makers: list[Callable[[], Design]] = [partial(FeatureDesign, module, axis) for axis in feature_axes(module)]
    return ("features", makers) if makers else (None, [])
