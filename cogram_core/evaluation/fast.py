"""The fast evaluator: the plain evaluator's losses, and so its decisions, without most of its work.

What stays the same between candidates is computed once: everything before the visited layer (``rest``), the layer's own
inputs and outputs, and, where a linear layer follows, that layer's outputs, too, to which a candidate then adds a matrix
of rank one (``probes``). Candidates for neurons and weights are scored in batches, or visited by compiled code.

How it knows that it may: a network that is shown to be a composition of its calls may be cut before any layer
(``composition``). Every other shortcut, and in other networks the cut, is tried on a few examples at the first visit of a
layer against full forward passes, with the layer changed at random. A shortcut that doesn't agree is not taken, and
``note`` says so.

How batching can't flip a decision: below layer level the network runs in float64, so that losses differ from the plain
evaluator's by about 1e-15, far below the shares' grid of 2⁻¹⁶ and the tolerance of 1e-6. At layer level candidates run
one by one through the same operations as in a full pass, so that losses are the same to the last bit, in any precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from cogram_core.errors import FusionStopped
from cogram_core.evaluation.compiled import CompiledProbe
from cogram_core.evaluation.composition import is_composition
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import Candidates, PlainEvaluator, batch_size
from cogram_core.evaluation.losses import example_losses, mean_on_device
from cogram_core.evaluation.probes import Probe, ProbeKind, open_probe, probe_kinds
from cogram_core.evaluation.rest import Rest
from cogram_core.evaluation.visits import Did, Rules, Run, Visited
from cogram_core.networks.calls import Call
from cogram_core.networks.layers import Layer, LayerValue, Level
from cogram_core.networks.network import Network
from cogram_core.stopping import stop_point

RECORD_BYTES = 2**30
"""The most that the outputs before a cut may take; a constant, so that results don't depend on the memory at hand."""
_TRIAL_EXAMPLES = 6
_CUT_EXAMPLES = 2  # a cut that is wrong is wrong for every example
_TRIAL_ROWS = 3
_AGREEMENT = 1e-9


class FastEvaluator:
    """See ``Evaluator``. Keeps what it computed until it is told of a change."""

    def __init__(self, network: Network, dataset: Dataset) -> None:
        inputs = dataset.inputs
        self._network = network
        # The network may have been widened since the data were read.
        self._dataset = replace(dataset, inputs=inputs.to(network.dtype) if inputs.is_floating_point() else inputs)
        self._plain = PlainEvaluator(network, self._dataset)
        self._step = batch_size(inputs)
        self._rests = [Rest(network, batch) for batch in torch.split(self._dataset.inputs, self._step)]
        self._targets = torch.split(self._dataset.targets, self._step)
        self._cuts: dict[str, Call] = {}
        self._kinds: dict[str, ProbeKind | None] = {}
        self._notes: dict[str, str] = {}
        self._cut_trial: FastEvaluator | None = None
        self._stale: set[Call] = set()  # what was computed after these is out of date, but for an open layer's probes
        self._layer: Layer | None = None
        self._probes: list[Probe] = []
        self._compiled: CompiledProbe | None = None  # takes the probes' place
        self._last: tuple[Candidates, Tensor] | None = None

    def note(self, layer: Layer) -> str:
        """Which shortcut can't be taken for a layer, in words; empty where all can."""
        return self._notes.get(layer.name, "")

    def touched(self, layer: Layer) -> frozenset[int] | None:
        """The rows of an embedding that the examples read; None where that can't be told, or is no question."""
        cut = self._cut(layer)
        if layer.module is None or cut.module != layer.module:
            return None
        if not isinstance(self._network.module.get_submodule(layer.module), nn.Embedding):
            return None
        if self._kind(layer) is None:  # its rows may be read in another way, too
            return None
        return self._read_rows(cut)

    def _read_rows(self, cut: Call) -> frozenset[int] | None:
        """What an embedding's call is given, over all examples; None where it is given it by name."""
        self._layer = None
        for rest in self._rests:
            rest.go_to(cut)
        given = [rest.capture([cut.key])[1][cut.key][0] for rest in self._rests]
        if not all(isinstance(rows, Tensor) for rows in given):
            return None
        return frozenset(torch.cat([rows.unique() for rows in given]).tolist())

    def loss(self) -> float:
        """See ``Evaluator.loss``."""
        return self._plain.loss()

    def open(self, layer: Layer) -> int | None:
        """See ``Evaluator.open``."""
        if self._kind(layer) is None:
            return None
        self._open(layer)
        return sum(probe.effort() for probe in ([self._compiled] if self._compiled else self._probes))

    def layer_losses(self, layer: Layer, values: Iterable[LayerValue]) -> list[float]:
        """See ``Evaluator.layer_losses``."""
        self._cut_before(layer)
        kept = self._network.value(layer)
        means = []
        try:
            for value in values:
                self._network.assign(layer, value)
                means.append(self._rest_mean())
        finally:
            self._network.assign(layer, kept)
        return _on_host(torch.stack(means)) if means else []

    def losses(self, candidates: Candidates) -> list[float]:
        """See ``Evaluator.losses``."""
        layer = candidates.layer
        if self._kind(layer) is None:
            return self._one_by_one(candidates)
        self._open(layer)
        if self._compiled is not None:
            return [mean if math.isfinite(mean) else math.inf for mean in self._compiled.losses(candidates)[1]]
        found = self._candidate_losses(candidates)
        weights = self._dataset.weights
        means = found.mean(dim=1) if weights is None else (found * weights).sum(dim=1) / weights.sum()
        self._last = candidates, found
        return _on_host(means)

    def moving(self, candidates: Candidates, place: int) -> None:
        """See ``Evaluator.moving``."""
        layer = candidates.layer
        self._outdated(self._cut(layer))
        if self._layer is not layer:
            self._layer = None
            return
        if self._compiled is not None:
            self._compiled.move(candidates, place)
            return
        if self._last is not None and self._last[0] is candidates:
            losses = self._last[1][place]
        else:
            losses = self._candidate_losses(candidates.part(place, place + 1))[0]
        for at, probe in enumerate(self._probes):
            probe.move(candidates, place, losses[at * self._step : (at + 1) * self._step])
        self._last = None

    def most_visits(self, layer: Layer, level: Level, losses: int) -> int | None:
        """How many units of so many losses each to have visited at once by ``visit``; None: it can't visit this layer."""
        if self._kind(layer) is None:
            return None
        self._open(layer)
        return None if self._compiled is None else self._compiled.most(level, losses)

    def visit(self, run: Run, rules: Rules) -> Visited:
        """Visits units one after the other; where any were merged, the caller puts their values into the network.

        Raises:
            RuntimeError: for a layer that can't be visited so, see ``most_visits``.
        """
        self._open(run.layer)
        if self._compiled is None:
            raise RuntimeError(f"no compiled visits of layer {run.layer.name}")
        stop_point()
        visited = self._compiled.visit(run, rules)
        if Did.MERGED in visited.did:
            self._outdated(self._cut(run.layer))
        return visited

    def changed(self, layer: Layer) -> None:
        """See ``Evaluator.changed``."""
        self._layer = self._compiled = self._last = None
        self._probes = []
        self._outdated(self._cut(layer))

    def _outdated(self, cut: Call) -> None:
        self._stale.add(cut)
        if self._cut_trial is not None:
            self._cut_trial._stale.add(cut)

    def _candidate_losses(self, candidates: Candidates) -> Tensor:
        """Each example's loss under each candidate, float64 (K, N)."""
        self._open(candidates.layer)
        if self._compiled is not None:
            return self._compiled.losses(candidates)[0]
        parts = []
        for probe, targets in zip(self._probes, self._targets, strict=True):
            step = probe.at_once()
            found = []
            for first in range(0, len(candidates), step):
                stop_point()
                found.append(probe.losses(candidates.part(first, first + step), self._dataset.loss, targets))
            parts.append(torch.cat(found) if len(found) > 1 else found[0])
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    def _one_by_one(self, candidates: Candidates) -> list[float]:
        """For layers whose neurons can't be tried side by side."""
        layer = candidates.layer
        self._cut_before(layer)
        means = []
        for row, value in zip(candidates.rows.tolist(), candidates.whole_rows(self._network), strict=True):
            kept = self._network.rows(layer, row, row + 1)[0]
            self._network.assign_row(layer, row, value)
            try:
                means.append(self._rest_mean())
            finally:
                self._network.assign_row(layer, row, kept)
        return _on_host(torch.stack(means)) if means else []

    def _rest_mean(self) -> Tensor:
        parts = []
        for rest, targets in zip(self._rests, self._targets, strict=True):
            stop_point()
            parts.append(example_losses(self._dataset.loss, rest.run(), targets))
        return mean_on_device(torch.cat(parts), self._dataset.weights)

    def _batches(self) -> Iterator[Dataset]:
        """The examples as they run together."""
        for first in range(0, len(self._dataset), self._step):
            part = slice(first, first + self._step)
            weights = None if self._dataset.weights is None else self._dataset.weights[part]
            yield Dataset(self._dataset.inputs[part], self._dataset.targets[part], weights)

    def _cut_before(self, layer: Layer) -> None:
        self._layer = None  # an open layer's probes run a rest that is cut where they need it
        cut = self._cut(layer)
        for rest in self._rests:
            stop_point()
            for stale in self._stale:
                rest.forget_after(stale)
            rest.go_to(cut)
        self._stale = set()

    def _open(self, layer: Layer) -> None:
        """Gets the probes of a layer ready, if they aren't."""
        if self._layer is layer:
            return
        kind = self._kind(layer)
        assert kind is not None
        self._cut_before(layer)
        self._probes, self._compiled = [], None
        for rest, examples in zip(self._rests, self._batches(), strict=True):
            stop_point()
            self._probes.append(open_probe(kind, layer, self._network, rest, examples))
        self._compiled = CompiledProbe.of([probe.ending() for probe in self._probes], self._dataset)
        if self._compiled is not None:
            self._probes = []
        self._layer, self._last = layer, None

    def _cut(self, layer: Layer) -> Call:
        """Where to cut for a layer: before its own call, if a trial shows that nothing earlier depends on it."""
        if layer.name not in self._cuts:
            cut = self._network.cut(layer)
            if cut != self._network.calls.calls[0] and not self._composed and not self._cut_holds(layer, cut):
                cut = self._network.calls.calls[0]
            if cut == self._network.calls.calls[0] and len(self._network.layers) > 1:
                self._notes[layer.name] = "evaluated in full: the network can't be cut before this layer"
            elif (size := self._record_bytes(cut)) > RECORD_BYTES:
                cut = self._network.calls.calls[0]
                self._notes[layer.name] = f"evaluated in full: what comes before would take {size >> 20} MiB to keep"
            self._cuts[layer.name] = cut
        return self._cuts[layer.name]

    def _record_bytes(self, cut: Call) -> int:
        """What the outputs that are kept before a cut take, for all examples."""
        return self._bytes(self._network.calls.before(cut), len(self._dataset))

    def _bytes(self, calls: Iterable[Call], examples: int) -> int:
        return sum(call.numbers for call in calls) * examples * self._network.dtype.itemsize

    @cached_property
    def _composed(self) -> bool:
        """Whether every cut holds, whatever the layer."""
        if self._bytes(self._network.calls.calls, _CUT_EXAMPLES) > RECORD_BYTES:
            return False
        few = self._dataset.evenly(_CUT_EXAMPLES)
        return is_composition(self._network, few.inputs, self._others(len(few)))

    def _others(self, count: int) -> Tensor:
        """Inputs for a pass before a trial on ``count`` examples: more, so that what it leaves in modules can't fit."""
        return self._dataset.inputs[torch.arange(count + 1, device=self._dataset.inputs.device) % len(self._dataset)]

    def _trial(self, examples: int) -> FastEvaluator:
        trial = FastEvaluator(self._network, self._dataset.evenly(examples))
        trial._cuts = dict(self._cuts)
        return trial

    def _cut_holds(self, layer: Layer, cut: Call) -> bool:
        # One trial for all layers, as layers are visited backward: what one records is there for the next.
        trial = self._cut_trial or self._trial(_CUT_EXAMPLES)
        self._cut_trial, trial._cuts[layer.name] = None, cut
        value = _shaken(self._network.value(layer))
        stop_point()
        try:
            trial._cut_before(layer)
            self._network.logits(self._others(len(trial._dataset)))
            holds = trial.layer_losses(layer, [value]) == trial._plain.layer_losses(layer, [value])
        except (FusionStopped, MemoryError):
            raise
        except Exception:  # whatever a module does that wants more of a call than its output
            return False
        self._cut_trial = trial if holds else None
        return holds

    def _kind(self, layer: Layer) -> ProbeKind | None:
        """The quickest way to try a layer's neurons side by side that a trial finds right."""
        if layer.name not in self._kinds:
            cut = self._cut(layer)
            tried = probe_kinds(layer, self._network, cut)
            self._kinds[layer.name] = next((kind for kind in tried if self._probe_holds(layer, kind)), None)
            if self._kinds[layer.name] is None and not self.note(layer):
                self._notes[layer.name] = "evaluated one by one: candidates of this layer can't be batched"
        return self._kinds[layer.name]

    def _probe_holds(self, layer: Layer, kind: ProbeKind) -> bool:
        trial = self._trial(_TRIAL_EXAMPLES)
        trial._kinds[layer.name] = kind
        choice = sorted((kind.name == "tokens" and trial._read_rows(kind.cut)) or range(layer.neurons))
        rows = torch.tensor(choice[:: max(1, len(choice) // _TRIAL_ROWS)][:_TRIAL_ROWS])
        values = torch.cat([self._network.rows(layer, row, row + 1) for row in rows.tolist()])
        candidates = Candidates(layer, rows, None, _shaken({"": values}, signed=True)[""])
        try:
            found = trial._candidate_losses(candidates)
        except (FusionStopped, MemoryError):
            raise
        except Exception:  # as above
            return False
        expected = torch.stack(trial._plain.candidate_losses(candidates))
        return torch.allclose(found, expected, rtol=_AGREEMENT, atol=_AGREEMENT, equal_nan=True)


def _on_host(means: Tensor) -> list[float]:
    """The mean losses (K,) at the one moment at which the host waits for the device: decisions on all of them are due."""
    return [mean if math.isfinite(mean) else math.inf for mean in means.tolist()]


def _shaken(value: LayerValue, signed: bool = False) -> dict[str, Tensor]:
    """A value far from the given one, the same at every call; only larger numbers, for variances, unless ``signed``."""
    random = torch.Generator().manual_seed(0)
    shaken = {}
    for name, tensor in value.items():
        noise = torch.rand(tensor.shape, generator=random).to(tensor.device, tensor.dtype)
        noise = 4 * noise - 2 if signed else noise
        scale = tensor.abs().mean() if tensor.numel() else tensor.sum()
        shaken[name] = torch.addcmul(tensor, noise, scale + 0.1)
    return shaken
