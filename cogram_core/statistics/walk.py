"""Walks a network in execution order and solves for its tensors on the way, each from what really arrives there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cogram_core.mixing import mix, round_shares
from cogram_core.networks.network import Network
from cogram_core.statistics.averages import pooled_moments, row_shares
from cogram_core.statistics.designs import Design
from cogram_core.statistics.fitting import TaskWeights, fit, task_shares
from cogram_core.statistics.gram import Sums
from cogram_core.statistics.passes import Stops, watched
from cogram_core.statistics.sites import Member, Plan, Site
from cogram_core.statistics.streams import Stream, holding
from cogram_core.stopping import stop_point


@dataclass(frozen=True)
class Task:
    """What one source brings: its tensors, the inputs of its data (N, ...), and its weight."""

    read: Callable[[str], Tensor]
    inputs: Tensor
    weight: float


@dataclass(frozen=True)
class Options:
    """How layers are fitted; see ``cogram_core.methods.regmean`` and ``chain_of_merges`` for what the words mean.

    ``arriving``: the inputs X are those in each source itself, or those in the network merged so far. ``target``: what is
    fitted is what a source gives to these inputs, or what it gave in itself on its own ones. ``shrink`` is α, what
    remains of the Gram matrices off their diagonals.
    """

    arriving: Literal["own", "merged"]
    target: Literal["original", "propagated"]
    shrink: float
    ridge: float
    task_weights: TaskWeights = "uniform"


@dataclass(frozen=True)
class Solved:
    """A tensor that the network now holds, by which shares, and how well its layer fits.

    The losses are mean squared residuals of the layer's output, an element: of the weighted average of the sources, and of
    what was found; None where nothing was fitted.
    """

    name: str
    shares: tuple[float, ...]
    loss_before: float | None
    loss_after: float | None
    reason: str


def solve(network: Network, tasks: Sequence[Task], plan: Plan, options: Options) -> Iterator[Solved]:
    """Goes through the plan's sites in order, and leaves in the network what is found for each.

    All other tensors of the network have to be merged before. Modules that are called several times have no prefix that
    is merged before them: they are solved first of all, from what arrives in each source itself, over all calls.

    Raises:
        FusionStopped: if the run is to end.
    """
    again = [site for site in plan.sites if len(site.calls) > 1]
    once = [site for site in plan.sites if len(site.calls) == 1]
    if options.arriving == "own":
        yield from _Walk(network, tasks, plan, plan.sites, options).run()
        return
    if again:
        yield from _Walk(network, tasks, plan, again, Options("own", "propagated", 0.9, options.ridge)).run()
    yield from _Walk(network, tasks, plan, once, options).run()


@dataclass
class _Open:
    """A site whose sums are being added up: the equations of its members, and what each task has of it.

    ``matrices`` has each task's members side by side, ``sizes`` their outputs. ``unlike``: what arrives in the merged
    network has other rows than what a source gave.
    """

    designs: list[Design]
    matrices: list[Tensor]
    sizes: list[int]
    sums: list[Sums]
    unlike: bool = False


class _Walk:
    def __init__(
        self, network: Network, tasks: Sequence[Task], plan: Plan, sites: Sequence[Site], options: Options
    ) -> None:
        self._network = network
        self._tasks = tasks
        self._plan = plan
        self._sites = sites
        self._options = options
        self._original = options.target == "original"
        self._own: list[Stream] = []
        self._merged: list[Stream] = []

    def run(self) -> Iterator[Solved]:
        """The walk."""
        visits = sorted((call.begin, place) for place, site in enumerate(self._sites) for call in site.calls)
        known: dict[int, _Open] = {}
        with ExitStack() as stack:
            self._set_out(stack)
            for begin, place in visits:
                site = self._sites[place]
                self._advance(site, begin)
                if site.kind == "embedding":
                    yield self._embedding(site.members[0], begin)
                    continue
                if site.kind == "normalised":
                    yield from self._renew(site.members[0], begin)
                if place not in known:
                    known[place] = self._open(site)
                self._add(site, known[place], begin)
                if begin == site.calls[-1].begin:
                    yield from self._close(site, known.pop(place))

    def _set_out(self, stack: ExitStack) -> None:
        begins = [call for site in self._sites for call in site.calls]
        ends = [call for site in self._sites for call in site.ends]
        arrivals = Stops.at(begins=begins)
        own = Stops.at(ends=[site.last for site in self._sites], outputs=ends) if self._original else arrivals
        stack.enter_context(watched(self._network.module, own.modules | arrivals.modules))
        for task in self._tasks:
            if self._options.arriving == "own" or self._original:
                self._own.append(Stream(self._network, self._plan.uses, task.inputs, own, task.read))
                stack.callback(self._own[-1].close)
            if self._options.arriving == "merged":
                self._merged.append(Stream(self._network, self._plan.uses, task.inputs, arrivals, None))
                stack.callback(self._merged[-1].close)

    def _advance(self, site: Site, begin: int) -> None:
        for stream in self._own:
            stream.advance(site.last.end if self._original else begin)
        for stream in self._merged:
            stream.advance(begin)

    def _arrived(self, task: int, begin: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Number, input and mask of each batch of a task that is given something at a call."""
        stream = (self._merged or self._own)[task]
        for number, (each, mask) in enumerate(zip(stream.passes, stream.masks, strict=True)):
            stop_point()
            if each.at == begin and each.given is not None:
                yield number, each.given, mask

    def _open(self, site: Site) -> _Open:
        designs = [member.design() for member in site.members if member.design is not None]
        matrices, sizes = [], []
        for task in self._tasks:
            values = [{inner: task.read(name) for inner, name in member.tensors.items()} for member in site.members]
            own = [design.matrix(given).double() for design, given in zip(designs, values, strict=True)]
            matrices.append(torch.cat(own, 2))
            sizes = [matrix.shape[2] for matrix in own]
        sums = [Sums.zero(matrix, designs[0].constant, self._original) for matrix in matrices]
        return _Open(designs, matrices, sizes, sums)

    def _add(self, site: Site, known: _Open, begin: int) -> None:
        """Adds up what has arrived at a call."""
        for task, sums in enumerate(known.sums):
            with self._layer_of(task, site):
                for number, given, mask in self._arrived(task, begin):
                    beyond = [self._beyond(task, number, member, given) for member in site.members]
                    alike = [output for output in beyond if output is not None]
                    known.unlike |= self._original and len(alike) < len(beyond)
                    wanted = alike if len(alike) == len(beyond) else []
                    for rows, outputs in known.designs[0].equations(given, wanted, mask):
                        sums.add(rows, outputs)

    def _layer_of(self, task: int, site: Site) -> AbstractContextManager[None]:
        """Puts a source's layer into the network, where it is to run on what arrives."""
        return holding(self._network, self._tasks[task].read, site.names) if self._original else nullcontext()

    def _beyond(self, task: int, number: int, member: Member, given: Tensor) -> Tensor | None:
        """What a source gave in itself less what its layer gives to this input; None if other rows arrive here than there.

        The module itself is run, so that nothing is left where the same input arrives.
        """
        if not self._original:
            return None
        output = self._own[task].passes[number].outputs.pop((member.module, 0), None)
        with torch.no_grad():
            here: Tensor = self._network.module.get_submodule(member.module).forward(given)
        return output - here if isinstance(output, Tensor) and output.shape == here.shape else None

    def _close(self, site: Site, known: _Open) -> Iterator[Solved]:
        """Solves a site and puts what is found into the network."""
        for sums in known.sums:
            sums.finish()
            if known.unlike:
                sums.cross, sums.square = None, 0.0
        options, weights = self._options, [task.weight for task in self._tasks]
        kind = options.task_weights if site.kind == "linear" else "uniform"
        shares = task_shares(weights, known.sums, kind, known.designs[0].constant)
        precision = torch.finfo(self._network.dtype).eps
        fitted = fit(known.sums, known.matrices, shares, options.shrink, options.ridge, precision)
        unlike = "; fitted to the sources' layers, for other rows arrive than in the sources" if known.unlike else ""
        parts = torch.split(fitted.matrix, known.sizes, 2)
        for member, design, part in zip(site.members, known.designs, parts, strict=True):
            for inner, value in design.split(part).items():
                name = member.tensors[inner]
                self._network.tensor(name).copy_(value)
                yield Solved(name, fitted.shares, fitted.loss_before, fitted.loss_after, fitted.reason + unlike)

    def _renew(self, member: Member, begin: int) -> Iterator[Solved]:
        """Takes the statistics of a batch normalisation anew, from what arrives in the merged network.

        Statistics that all sources have alike are kept: scale and shift, which are solved for next, do as well with any.
        """
        weights = [task.weight for task in self._tasks]
        shares = round_shares([weight / math.fsum(weights) for weight in weights])
        names = [member.tensors[inner] for inner in ("running_mean", "running_var")]
        own = [[task.read(name) for task in self._tasks] for name in names]
        usual = [mix(values, shares) for values in own]
        found, reason = usual, "the sources have the same"
        if any(not torch.equal(value, values[0]) for values in own for value in values):
            arrived = [[given for _, given, _ in self._arrived(task, begin)] for task in range(len(self._tasks))]
            moments = pooled_moments(arrived, shares)
            found, reason = moments or usual, "statistics of what arrives in the merged network"
        for name, kept, value in zip(names, usual, found, strict=True):
            # A channel that never varies here may vary elsewhere: with no variance it would be blown up.
            known = torch.isfinite(value) & (found[1] > 0)
            self._network.tensor(name).copy_(torch.where(known, value, kept))
            yield Solved(name, shares, None, None, reason)

    def _embedding(self, member: Member, begin: int) -> Solved:
        """Averages an embedding's rows by how often each source's data has them."""
        name = member.tensors["weight"]
        rows = self._network.tensor(name).shape[0]
        counts = []
        for task in range(len(self._tasks)):
            total = torch.zeros(rows, dtype=torch.float64, device=self._network.device)
            for _, given, mask in self._arrived(task, begin):
                ids = given[mask] if mask is not None and mask.shape == given.shape else given
                total += torch.bincount(ids.reshape(-1), minlength=rows)
            counts.append(total / max(1.0, float(total.sum())))
        parts = row_shares([task.weight for task in self._tasks], counts)
        value = mix((task.read(name) for task in self._tasks), [part[:, None] for part in parts])
        self._network.tensor(name).copy_(value)
        seen = int((sum(counts, torch.zeros_like(counts[0])) > 0).sum())
        reason = f"rows by the counts of their tokens; the weighted mean of {rows - seen} of {rows} that no data has"
        return Solved(name, tuple(float(part.mean()) for part in parts), None, None, reason)
