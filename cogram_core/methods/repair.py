"""REPAIR: gives a merged network's units the mean and deviation that they have in the sources."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cogram_core.evaluation.datasets import Dataset
from cogram_core.methods.contract import Field, MethodParams, NetworkMethod, Source, StageContext
from cogram_core.mixing import round_shares, weighted_mean
from cogram_core.networks.calls import Call
from cogram_core.networks.network import Network
from cogram_core.payload import pack_values
from cogram_core.statistics.averages import pooled_moments
from cogram_core.statistics.passes import Stops, watched
from cogram_core.statistics.sites import Member, Plan, Site, find_plan
from cogram_core.statistics.streams import Stream, holding
from cogram_core.statistics.uses import find_uses

# A deviation of that part of the mean is rounding: the unit is constant.
_CONSTANT = 1e-6
_Rows = Sequence[Tensor]


class Params(MethodParams):
    """Parameters of ``repair``."""

    examples: int = Field(512, ge=1, description="examples of each source's data, drawn evenly over it")


def run(context: StageContext, params: Params) -> None:
    """W ← (σ*/σ) W, b ← (σ*/σ)(b − μ) + μ* for each unit of each linear and convolution layer, in the order of execution.

    μ and σ are the mean and deviation of what the unit gives in the network whose earlier layers are repaired already; μ*
    and σ* are the weighted means of the sources' own. Everything is taken on the evaluation data, or for each source on its
    own data where it has some: then μ and σ are the weighted means of what the network gives on each. Places of padding are
    left out. A unit that is constant, here or in all sources, is shifted and not scaled; a layer without bias isn't shifted.

    In front of a batch normalisation all this would be void: there the layer stays, and the running mean and variance are
    those of what arrives, taken anew. Where the very same arrives as in every source, nothing is taken anew.

    Source: Jordan et al. 2023, arXiv:2211.08403, section 3.
    """
    first = context.sources[0].data or context.evaluation_data()
    repair = _Repair(context, find_plan(context.network, first.inputs[:1], ["linear", "normalised"]), first)
    if context.restore(repair.rows) is None:
        repair.carry_out(params.examples)
    context.milestone("repaired")


@dataclass(frozen=True)
class _Moments:
    """Mean and deviation of units, float64 (d,) each."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, rows: _Rows) -> _Moments | None:
        """Of all rows (R, d) together; None where there is none."""
        count = sum(len(part) for part in rows)
        if count == 0:
            return None
        zero = torch.zeros(rows[0].shape[1], dtype=torch.float64, device=rows[0].device)
        mean = sum((part.double().sum(0) for part in rows), zero) / count
        square = sum(((part.double() - mean).square().sum(0) for part in rows), zero) / count
        return cls(mean, square.sqrt())

    @classmethod
    def mixed(cls, parts: Sequence[_Moments], weights: Sequence[float]) -> _Moments:
        """Weighted means of means and of deviations; equal ones give themselves."""
        mean = weighted_mean([part.mean for part in parts], weights)
        return cls(mean, weighted_mean([part.deviation for part in parts], weights))

    @property
    def varies(self) -> Tensor:
        """Which units are no constants, bool (d,)."""
        return self.deviation > _CONSTANT * self.mean.abs()


class _Repair:
    """One stage: where there is something to repair, and the forward passes that stand before it."""

    def __init__(self, context: StageContext, plan: Plan, data: Dataset) -> None:
        self._context = context
        self._network = context.network
        self._plan = plan
        self._skipped = dict(_skipped(context.network, plan, data.inputs[:1]))
        self._sites = [site for site in plan.sites if len(site.calls) == 1]
        self._weights = [source.weight for source in context.sources]
        self._own: list[Stream] = []
        self._merged: list[Stream] = []
        self._used: list[int] = []

    @property
    def rows(self) -> int:
        """How many rows of the trace the stage has: one a tensor that it looks at, and one a layer that it doesn't."""
        return len(self._skipped) + sum(len(_changing(site, member)) for site, member in self._members())

    def carry_out(self, examples: int) -> None:
        """Goes through all layers; one that is left out is recorded first."""
        for name, reason in self._skipped.items():
            self._context.record(layer=name, kind="layer", action="skipped", reason=reason)
        done = 0
        with ExitStack() as stack:
            self._set_out(stack, examples)
            for site in self._sites:
                begin = site.calls[0].begin
                for stream in (*self._own, *self._merged):
                    stream.advance(begin)
                for member in site.members:
                    if member.module not in self._skipped:
                        self._visit(site, member, begin)
                done += 1
                self._context.progress(done, len(self._sites))

    def _members(self) -> Iterator[tuple[Site, Member]]:
        for site in self._sites:
            for member in site.members:
                if member.module not in self._skipped:
                    yield site, member

    def _set_out(self, stack: ExitStack, examples: int) -> None:
        """Passes of every source through itself, and of every set of data through the merged network."""
        stops = Stops.at(begins=[site.calls[0] for site in self._sites])
        stack.enter_context(watched(self._network.module, stops.modules))
        known: dict[int, int] = {}
        for source in self._context.sources:
            data = source.data or self._context.evaluation_data()
            inputs = data.evenly(examples).inputs
            self._own.append(Stream(self._network, self._plan.uses, inputs, stops, source.read))
            stack.callback(self._own[-1].close)
            if id(data) not in known:
                known[id(data)] = len(self._merged)
                self._merged.append(Stream(self._network, self._plan.uses, inputs, stops, None))
                stack.callback(self._merged[-1].close)
            self._used.append(known[id(data)])

    def _visit(self, site: Site, member: Member, begin: int) -> None:
        if site.kind == "normalised":
            values, reason = self._renewed(member, begin)
        else:
            values, reason = self._rescaled(member, begin)
        for inner in _changing(site, member):
            name = member.tensors[inner]
            tensor = self._network.tensor(name)
            value = None if values is None else values[inner].to(tensor.dtype)
            if value is None or torch.equal(value, tensor):
                why = reason if values is None else "nothing differs from the sources"
                self._context.record(layer=name, kind="tensor", action="skipped", reason=why)
                continue
            tensor.copy_(value)
            payload = pack_values(tensor)
            self._context.record(layer=name, kind="tensor", action="solved", reason=reason, payload=payload)

    def _rescaled(self, member: Member, begin: int) -> tuple[Mapping[str, Tensor] | None, str]:
        """A layer's tensors in float64 and how they came about; None where nothing arrives."""
        wanted = [
            self._outputs(member, stream, begin, source)
            for stream, source in zip(self._own, self._context.sources, strict=True)
        ]
        distinct = [self._outputs(member, stream, begin, None) for stream in self._merged]
        found = [distinct[used] for used in self._used]
        pairs = [
            (mine, theirs, weight)
            for mine, theirs, weight in zip(found, wanted, self._weights, strict=True)
            if mine is not None and theirs is not None
        ]
        if not pairs:
            return None, "nothing arrives here"
        weights = [weight for _, _, weight in pairs]
        now = _Moments.mixed([mine for mine, _, _ in pairs], weights)
        target = _Moments.mixed([theirs for _, theirs, _ in pairs], weights)
        varies = now.varies & target.varies
        one = torch.ones_like(now.deviation)
        scale = torch.where(varies, target.deviation / torch.where(varies, now.deviation, one), one)
        module = self._network.module.get_submodule(member.module)
        values = {inner: self._network.tensor(name).double() for inner, name in member.tensors.items()}
        shape = [1] * values["weight"].ndim
        shape[-1 if _transposed(module) else 0] = -1
        values["weight"] = values["weight"] * scale.reshape(shape)
        if "bias" in values:
            values["bias"] = values["bias"] * scale + (target.mean - now.mean * scale)
        return values, _how(scale, varies, "bias" in values)

    def _outputs(self, member: Member, stream: Stream, begin: int, source: Source | None) -> _Moments | None:
        """The moments of a layer's units on what arrives, by a source's tensors or those at hand."""
        module = self._network.module.get_submodule(member.module)
        axis = 1 if isinstance(module, nn.modules.conv._ConvNd) else -1
        rows = []
        with ExitStack() as stack:
            if source is not None:
                stack.enter_context(holding(self._network, source.read, member.tensors.values()))
            stack.enter_context(torch.no_grad())
            for given, mask in _arrived(stream, begin):
                output: Tensor = module.forward(given)
                rows.append(_kept(output.movedim(axis, -1), None if axis == 1 else mask))
        return _Moments.of(rows)

    def _renewed(self, member: Member, begin: int) -> tuple[Mapping[str, Tensor] | None, str]:
        """A batch normalisation's statistics of what arrives, float64; None where nothing does."""
        arrived = [[given for given, _ in _arrived(stream, begin)] for stream in self._merged]
        shares = round_shares([weight / math.fsum(self._weights) for weight in self._weights])
        by_set = [
            math.fsum(share for share, used in zip(shares, self._used, strict=True) if used == place)
            for place in range(len(arrived))
        ]
        found = pooled_moments(arrived, by_set)
        if found is None:
            return None, "nothing arrives here"
        known = torch.isfinite(found[1]) & (found[1] > 0) & ~self._unchanged(arrived, begin)
        names = ("running_mean", "running_var")
        kept = {inner: self._network.tensor(member.tensors[inner]).double() for inner in names}
        values = {inner: torch.where(known, value, kept[inner]) for inner, value in zip(names, found, strict=True)}
        return values, f"statistics of what arrives, taken anew for {int(known.sum())} of {len(known)} channels"

    def _unchanged(self, arrived: Sequence[_Rows], begin: int) -> Tensor:
        """Through which channels the very same arrives in every source as in the merged network, bool (d,)."""
        merged = [_Moments.of([_kept(given.movedim(1, -1), None) for given in part]) for part in arrived]
        same: Tensor | None = None
        for stream, used in zip(self._own, self._used, strict=True):
            own = _Moments.of([_kept(given.movedim(1, -1), None) for given, _ in _arrived(stream, begin)])
            mine = merged[used]
            if own is not None and mine is not None:
                equal = (own.mean == mine.mean) & (own.deviation == mine.deviation)
                same = equal if same is None else same & equal
        assert same is not None  # something arrives
        return same


def _arrived(stream: Stream, begin: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Input and mask of each batch that stands before a call."""
    for each, mask in zip(stream.passes, stream.masks, strict=True):
        if each.at == begin and each.given is not None:
            yield each.given, mask


def _kept(output: Tensor, mask: Tensor | None) -> Tensor:
    """Rows (R, d) of an output (..., d), without places that are padding."""
    rows = output.reshape(-1, output.shape[-1])
    return rows if mask is None or mask.numel() != len(rows) else rows[mask.reshape(-1)]


def _how(scale: Tensor, varies: Tensor, bias: bool) -> str:
    """What the trace says of a layer."""
    reason = f"deviations times {float(scale.min()):.4g} to {float(scale.max()):.4g}"
    if not bool(varies.all()):
        reason += f"; {int((~varies).sum())} of {len(varies)} units are constant and not scaled"
    return reason if bias else f"{reason}; without bias the means stay"


def _transposed(module: nn.Module) -> bool:
    """Whether units are the weight's columns, as in GPT-2's Conv1D."""
    return not isinstance(module, nn.Linear | nn.modules.conv._ConvNd)


def _changing(site: Site, member: Member) -> list[str]:
    """Which of a member's tensors are looked at, by its own names."""
    return ["running_mean", "running_var"] if site.kind == "normalised" else list(member.tensors)


def _skipped(network: Network, plan: Plan, example: Tensor) -> Iterator[tuple[str, str]]:
    """Layers that are left as they are, and why."""
    normalised = {member.module for site in plan.sites if site.kind == "normalised" for member in site.members}
    void = _before(network, example, normalised)
    planned = {member.module: site for site in plan.sites for member in site.members}
    for name, module in network.module.named_modules():
        site = planned.get(name)
        if site is None:
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.modules.batchnorm._BatchNorm):
                yield name, "its tensors are not used by its own calls alone, or it isn't called, or has no statistics"
        elif len(site.calls) > 1:
            yield name, "it is called several times, and its units have other statistics each time"
        elif name in void:
            yield name, f"in front of {void[name]}, whose statistics are taken anew: scale and mean are void"


def _before(network: Network, example: Tensor, normalised: set[str]) -> dict[str, str]:
    """Modules whose output is what a batch normalisation is given, with its name."""
    made_by: dict[tuple[int, int], str] = {}
    found: dict[str, str] = {}
    alive: list[Any] = []  # so that no other tensor gets the identity of one that is gone

    def hear(call: Call, given: Tensor, output: Any) -> None:
        alive.append((given, output))
        known = (id(given), given._version)  # what works in place makes another of it
        if call.module in normalised and known in made_by:
            found[made_by[known]] = call.module
        if isinstance(output, Tensor):  # the innermost module that gives it ends first
            made_by.setdefault((id(output), output._version), call.module)

    find_uses(network, example, hear)
    return found


METHOD = NetworkMethod(name="repair", params=Params, run=run, kind="refining")
