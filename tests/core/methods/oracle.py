"""CoGraM once more, as plainly as it can be said: arrays, a full forward pass a loss, nothing shared with the engine."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[Any]
State = dict[str, Array]
Pair = tuple[Tensor, Tensor]
# A unit: the layer's name, and from neuron level on the row, and at weight level the column.
Unit = tuple[str, int | None, int | None]


@dataclass
class Visit:
    """What was decided about one unit, in the words of the trace."""

    layer: str
    row: int | None
    column: int | None
    action: str
    sweep: int
    losses: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    step: float | None = None
    loss_before: float = 0.0
    loss_after: float | None = None


class EndsEarlyError(Exception):
    """All decisions that were allowed are taken."""


DEFAULTS: dict[str, Any] = {
    "granularity": "neuron",
    "steepness": {"layer": 5.5, "neuron": 3.0, "weight": 1.0},
    "steepness_scale": "units",
    "refinement": "passes",
    "tau": "given",
    "tau_min": 0.0,
    "tau_max": None,
    "tau_scale": "share",
    "max_sweeps": {"layer": 5, "neuron": 4, "weight": 1},
    "min_gain": 1e-4,
    "rollback": "all",
    "step": "backtrack",
    "max_backtracks": 2,
    "tolerance": 1e-6,
    "competence": 0.0,
    "extra_candidates": (),
    "unit_guard": False,
    "max_decisions": None,
}
PAPER: dict[str, Any] = {
    "steepness": 5.5,
    "steepness_scale": "flat",
    "refinement": "thresholds",
    "tau_min": 0.01,
    "tau_max": 1.0,
    "tau_scale": "absolute",
    "max_sweeps": {"layer": 1, "neuron": 1, "weight": 1},
    "rollback": "fine",
    "step": "full",
    "tolerance": 0.0,
}
LEVELS = ("layer", "neuron", "weight")
ROWS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
# What counts as equal: the last digits of a loss come of the order in which it was added up, and must not decide.
ROUNDING = 1e-12


class Oracle:
    """Runs on any network; ``order`` names its layers as they run, by default as they are registered."""

    def __init__(
        self,
        start: nn.Module,
        sources: Sequence[nn.Module],
        data: Pair,
        params: Mapping[str, Any],
        weights: Sequence[float] | None = None,
        holdout: Pair | None = None,
        order: Sequence[str] = (),
    ) -> None:
        preset = PAPER if params.get("preset") == "paper" else {}
        self.params = {**DEFAULTS, **preset, **params}
        for name in ("max_sweeps", "steepness"):
            if isinstance(self.params[name], dict):
                self.params[name] = {**DEFAULTS[name], **self.params[name]}
        # Decisions below layer level are taken on float64 passes; the units' values stay in their own dtype.
        self.dtype = torch.float32 if self.params["granularity"] == "layer" else torch.float64
        self.network = copy.deepcopy(start).eval().to(self.dtype)
        self.state = floats(start)
        self.sources = [floats(source) for source in sources]
        self.data, self.holdout = data, holdout
        self.weights = weights
        modules = dict(start.named_modules())
        self.layers = [name for name in order or modules if self.tensors(name)]
        self.rows = {name: isinstance(modules[name], ROWS) for name in self.layers}
        self.embeddings = {name for name in self.layers if isinstance(modules[name], nn.Embedding)}
        self.read = read_rows(start, self.embeddings, data[0])
        self.visits: list[Visit] = []
        self.loss = self.loss_of(self.state)
        self.sweep = 0
        self.handicaps = self.find_handicaps()
        self.low, self.high = self.find_thresholds()

    def tensors(self, layer: str) -> list[str]:
        """A layer's own tensors, the weight first."""
        own = [key for key in self.state if key.rpartition(".")[0] == layer]
        return sorted(own, key=lambda key: (not key.endswith(".weight"), key))

    def loss_of(self, state: State) -> float:
        return self.mean_loss(state, self.data, self.weights)

    def mean_loss(self, state: State, data: Pair, weights: Sequence[float] | None) -> float:
        own = self.network.state_dict()
        for name, value in state.items():
            own[name].copy_(torch.from_numpy(np.asarray(value)))
        inputs, targets = data
        with torch.no_grad():
            output = self.network(inputs.to(self.dtype) if inputs.is_floating_point() else inputs)
        losses = example_losses(output.numpy().astype(np.longdouble), targets)
        if weights is None and targets.ndim == 2 and not targets.is_floating_point():
            weights = (targets[:, 1:] != -100).sum(dim=1).tolist()  # every token counts the same
        share = np.ones(len(losses)) if weights is None else np.array(weights, dtype=np.longdouble)
        mean = float((losses * share).sum() / share.sum())
        return mean if np.isfinite(mean) else np.inf

    def find_handicaps(self) -> list[float]:
        kappa = self.params["competence"]
        if kappa == 0:
            return [0.0] * len(self.sources)
        losses = [self.loss_of(source) for source in self.sources]
        return [kappa * (loss - sum(losses) / len(losses)) for loss in losses]

    def find_thresholds(self) -> tuple[float, float | None]:
        if self.params["tau"] == "given" or self.params["refinement"] == "passes":
            return self.params["tau_min"], self.params["tau_max"]
        spreads = []
        for name in self.layers:
            losses = [self.loss_of(self.with_unit((name, None, None), source)) for source in self.sources]
            spreads.append(max(losses) - min(losses))
        low, high = np.quantile(spreads, (0.1, 0.9))
        return float(low), float(high)

    def part(self, state: State, unit: Unit) -> Array:
        """A unit as one flat array: row after row, in a row the weights first and the bias behind them."""
        layer, row, column = unit
        arrays = [np.asarray(state[name]) for name in self.tensors(layer)]
        if row is None:
            return np.concatenate([array.reshape(-1) for array in arrays])
        whole = np.concatenate([array[row].reshape(-1) for array in arrays])
        return whole if column is None else whole[column : column + 1]

    def with_unit(self, unit: Unit, value: Array | State) -> State:
        """M[u ← W]."""
        layer, row, column = unit
        numbers = self.part(value, unit) if isinstance(value, dict) else value
        changed = dict(self.state)
        if column is not None:
            whole = self.part(self.state, (layer, row, None)).copy()
            whole[column] = numbers[0]
            numbers = whole
        at = 0
        for name in self.tensors(layer):
            array = np.array(self.state[name])
            place = np.s_[...] if row is None else row
            size = array[place].size
            array[place] = numbers[at : at + size].reshape(array[place].shape)
            changed[name] = array
            at += size
        return changed

    def run(self) -> Oracle:
        most = self.params["max_sweeps"]
        try:
            if self.params["refinement"] == "thresholds":
                self.repeat(self.by_thresholds, most["layer"])
                return self
            for level in LEVELS[: LEVELS.index(self.params["granularity"]) + 1]:
                self.repeat(lambda name, level=level: self.by_level(name, level), most[level])
        except EndsEarlyError:
            pass
        return self

    def repeat(self, visit_layer: Any, most: int) -> None:
        for _ in range(most):
            loss, first = self.loss, len(self.visits)
            for name in reversed(self.layers):
                visit_layer(name)
            self.sweep += 1
            accepted = any(visit.action == "merged" for visit in self.visits[first:])
            if not accepted or loss - self.loss < self.params["min_gain"]:
                return

    def shape(self, layer: str) -> tuple[int, int]:
        """Neurons of a layer, and numbers of each."""
        if not self.rows[layer]:
            return 0, 0
        rows = len(self.state[self.tensors(layer)[0]])
        return rows, self.part(self.state, (layer, 0, None)).size

    def by_level(self, layer: str, level: str) -> None:
        if level == "layer":
            self.visit((layer, None, None))
            return
        rows, width = self.shape(layer)
        for row in range(rows):
            for column in [None] if level == "neuron" else range(width):
                self.visit((layer, row, column))

    def by_thresholds(self, layer: str) -> None:
        rows, width = self.shape(layer)
        finest = LEVELS.index(self.params["granularity"])
        if not self.visit((layer, None, None), (self.low, self.high) if finest > 0 and rows else None):
            return
        shared = rows if self.params["tau_scale"] == "share" else 1
        limits = (self.low / shared, None if self.high is None else self.high / shared) if finest > 1 else None
        for row in range(rows):
            if self.visit((layer, row, None), limits):
                for column in range(width):
                    self.visit((layer, row, column))

    def visit(self, unit: Unit, limits: tuple[float, float | None] | None = None) -> bool:
        """One visit; says whether the unit is left to finer ones."""
        layer, row, _ = unit
        seen = Visit(*unit, "skipped", self.sweep, loss_before=self.loss)
        self.visits.append(seen)
        most = self.params["max_decisions"]
        if most is not None and len(self.visits) > most:
            raise EndsEarlyError
        current, values = self.part(self.state, unit), [self.part(source, unit) for source in self.sources]
        if all(np.array_equal(current, value) for value in values):
            return False
        if layer in self.embeddings and row is not None and row not in self.read[layer]:
            return False
        average = (sum(value.astype(np.float64) for value in values) / len(values)).astype(np.float32)
        more = {"current": current, "average": average}
        values += [more[extra] for extra in ("current", "average") if extra in self.params["extra_candidates"]]
        seen.losses = [self.loss_of(self.with_unit(unit, value)) for value in values]
        of_sources = seen.losses[: len(self.sources)]
        spread = max(of_sources) - min(of_sources)
        if limits is not None and (spread < limits[0] or (limits[1] is not None and spread > limits[1])):
            seen.action = "refined"
            return True
        layer, row, column = unit
        rows, width = self.shape(layer)
        units = 1 if row is None else rows if column is None else rows * width
        if self.params["steepness_scale"] == "flat":
            units = 1
        fair = [loss - handicap / units for loss, handicap in zip(of_sources, self.handicaps, strict=True)]
        seen.shares = self.shares([*fair, *seen.losses[len(self.sources) :]], unit)
        target = sum(share * value.astype(np.float64) for share, value in zip(seen.shares, values, strict=True))
        self.accept(seen, unit, current, np.asarray(target))
        return False

    def shares(self, losses: list[float], unit: Unit) -> list[float]:
        """Softmax of −λ·L, its running sums rounded to multiples of 2⁻¹⁶."""
        layer, row, column = unit
        level = LEVELS[(row is not None) + (column is not None)]
        rows, width = self.shape(layer)
        slope = self.params["steepness"]
        slope = slope[level] if isinstance(slope, dict) else slope
        if self.params["steepness_scale"] == "units":
            slope *= {"layer": 1, "neuron": rows, "weight": rows * width}[level]
        z = -slope * np.array(losses)
        weights = np.exp(z - z.max())
        bounds = np.rint(np.cumsum(weights / weights.sum()) * 65536)
        return [float(share) for share in np.diff(bounds, prepend=0.0) / 65536]

    def accept(self, seen: Visit, unit: Unit, current: Array, target: Array) -> None:
        tries = 1 + (self.params["max_backtracks"] if self.params["step"] == "backtrack" else 0)
        forced = self.params["rollback"] == "fine" and seen.row is None
        for attempt in range(tries):
            seen.step = 1 / 2**attempt
            origin = current.astype(np.float64)
            value = target if attempt == 0 else origin + seen.step * (target - origin)
            candidate = self.with_unit(unit, value.astype(np.float32))
            seen.loss_after = self.loss_of(candidate)
            falls = seen.loss_after < self.loss * (1 - max(self.params["tolerance"], ROUNDING))
            if forced or (falls and self.guarded(candidate)):
                self.state, self.loss, seen.action = candidate, seen.loss_after, "merged"
                return
        seen.action = "rolled_back"

    def guarded(self, candidate: State) -> bool:
        """Whether the holdout data have nothing against a move."""
        if not self.params["unit_guard"]:
            return True
        assert self.holdout is not None
        before, after = (self.mean_loss(state, self.holdout, None) for state in (self.state, candidate))
        return after <= before * (1 + ROUNDING)


def example_losses(z: Array, targets: Tensor) -> Array:
    """Each example's loss, in extended precision: cross-entropy, squared error, or next-token cross-entropy."""
    if targets.is_floating_point():
        return np.asarray(((z - targets.double().numpy()) ** 2).reshape(len(z), -1).mean(axis=1))
    if targets.ndim == 1:
        return -np.take_along_axis(log_softmax(z), targets.numpy()[:, None], axis=1)[:, 0]
    found = []
    for scores, labels in zip(log_softmax(z), targets.tolist(), strict=True):
        told = [-scores[at, label] for at, label in enumerate(labels[1:]) if label != -100]
        found.append(sum(told) / len(told))
    return np.array(found)


def log_softmax(z: Array) -> Array:
    z = z - z.max(axis=-1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def read_rows(network: nn.Module, embeddings: set[str], inputs: Tensor) -> dict[str, set[int]]:
    """Which rows of each embedding a forward pass reads."""
    found: dict[str, set[int]] = {name: set() for name in embeddings}
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, given, n=name: found[n].update(given[0].unique().tolist())
        )
        for name in embeddings
    ]
    with torch.no_grad():
        network(inputs)
    for handle in handles:
        handle.remove()
    return found


def floats(module: nn.Module) -> State:
    """The floating tensors of a module as arrays."""
    return {
        name: tensor.detach().numpy().copy()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
