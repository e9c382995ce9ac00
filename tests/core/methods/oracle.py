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


@dataclass
class Visit:
    """What was decided about one unit, in the words of the trace."""

    layer: str
    row: int | None
    action: str
    sweep: int
    losses: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    step: float | None = None
    loss_before: float = 0.0
    loss_after: float | None = None


DEFAULTS: dict[str, Any] = {
    "granularity": "neuron",
    "steepness": {"layer": 5.5, "neuron": 3.0},
    "steepness_scale": "units",
    "refinement": "passes",
    "tau_min": 0.0,
    "tau_max": None,
    "max_sweeps": {"layer": 5, "neuron": 4},
    "min_gain": 1e-4,
    "rollback": "all",
    "step": "backtrack",
    "max_backtracks": 2,
    "tolerance": 1e-6,
}


class Oracle:
    """Runs on a sequential network whose children are its layers."""

    def __init__(
        self,
        start: nn.Sequential,
        sources: Sequence[nn.Module],
        data: tuple[Tensor, Tensor],
        params: Mapping[str, Any],
        weights: Sequence[float] | None = None,
    ) -> None:
        self.params = {**DEFAULTS, **params}
        # Decisions below layer level are taken on float64 passes; the units' values stay in their own dtype.
        self.dtype = torch.float32 if self.params["granularity"] == "layer" else torch.float64
        self.network = copy.deepcopy(start).eval().to(self.dtype)
        self.state = floats(start)
        self.sources = [floats(source) for source in sources]
        self.inputs, self.targets = data[0].to(self.dtype), data[1]
        self.weights = np.ones(len(self.targets)) if weights is None else np.array(weights)
        self.layers = [
            (
                name,
                [key for key in self.state if key.rpartition(".")[0] == name],
                isinstance(child, nn.Linear | nn.Conv2d),
            )
            for name, child in start.named_children()
            if any(key.startswith(f"{name}.") for key in self.state)
        ]
        self.visits: list[Visit] = []
        self.loss = self.loss_of(self.state)
        self.sweep = 0

    def loss_of(self, state: State) -> float:
        """Mean cross-entropy: softmax by itself, in extended precision."""
        own = self.network.state_dict()
        self.network.load_state_dict({**own, **{name: torch.from_numpy(value) for name, value in state.items()}})
        with torch.no_grad():
            z = self.network(self.inputs).numpy().astype(np.longdouble)
        z -= z.max(axis=1, keepdims=True)
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        losses = -log_p[np.arange(len(z)), self.targets.numpy()]
        return float((losses * self.weights).sum() / self.weights.sum())

    def with_unit(self, names: list[str], row: int | None, value: Mapping[str, Array]) -> State:
        """M[u ← W]."""
        changed = {name: array.copy() for name, array in self.state.items()}
        for name in names:
            changed[name][... if row is None else row] = value[name]
        return changed

    def part(self, state: State, names: list[str], row: int | None) -> dict[str, Array]:
        return {name: np.array(state[name] if row is None else state[name][row]) for name in names}

    def run(self) -> None:
        most = self.params["max_sweeps"]
        if self.params["refinement"] == "thresholds":
            self.repeat("thresholds", most["layer"])
            return
        self.repeat("layer", most["layer"])
        if self.params["granularity"] == "neuron":
            self.repeat("neuron", most["neuron"])

    def repeat(self, level: str, most: int) -> None:
        for _ in range(most):
            loss, first = self.loss, len(self.visits)
            for name, tensors, has_neurons in reversed(self.layers):
                rows = range(len(self.state[tensors[0]])) if has_neurons else range(0)
                finer = level == "neuron"
                if not finer:
                    may_refine = level == "thresholds" and self.params["granularity"] == "neuron" and has_neurons
                    finer = self.visit(name, tensors, None, 1, may_refine)
                if finer:
                    for row in rows:
                        self.visit(name, tensors, row, len(rows), False)
            self.sweep += 1
            accepted = any(visit.action == "merged" for visit in self.visits[first:])
            if not accepted or loss - self.loss < self.params["min_gain"]:
                return

    def visit(self, name: str, tensors: list[str], row: int | None, siblings: int, may_refine: bool) -> bool:
        params, seen = self.params, Visit(name, row, "skipped", self.sweep, loss_before=self.loss)
        self.visits.append(seen)
        current = self.part(self.state, tensors, row)
        values = [self.part(source, tensors, row) for source in self.sources]
        if all(np.array_equal(current[key], value[key]) for value in values for key in tensors):
            return False
        seen.losses = [self.loss_of(self.with_unit(tensors, row, value)) for value in values]
        spread = max(seen.losses) - min(seen.losses)
        too_coarse = params["tau_max"] is not None and spread > params["tau_max"]
        if may_refine and (spread < params["tau_min"] or too_coarse):
            seen.action = "refined"
            return True
        seen.shares = self.shares(seen.losses, "layer" if row is None else "neuron", siblings)
        target = {
            key: sum(share * value[key].astype(np.float64) for share, value in zip(seen.shares, values, strict=True))
            for key in tensors
        }
        self.accept(seen, tensors, current, target)
        return False

    def shares(self, losses: list[float], level: str, siblings: int) -> list[float]:
        """Softmax of −λ·L, its running sums rounded to multiples of 2⁻¹⁶."""
        slope = self.params["steepness"]
        slope = slope[level] if isinstance(slope, dict) else slope
        if level == "neuron" and self.params["steepness_scale"] == "units":
            slope *= siblings
        z = -slope * np.array(losses)
        weights = np.exp(z - z.max())
        bounds = np.rint(np.cumsum(weights / weights.sum()) * 65536)
        return [float(share) for share in np.diff(bounds, prepend=0.0) / 65536]

    def accept(self, seen: Visit, tensors: list[str], current: dict[str, Array], target: dict[str, Any]) -> None:
        tries = 1 + (self.params["max_backtracks"] if self.params["step"] == "backtrack" else 0)
        forced = self.params["rollback"] == "fine" and seen.row is None
        for attempt in range(tries):
            seen.step = 1 / 2**attempt
            value = {
                key: (current[key] + seen.step * (target[key] - current[key].astype(np.float64))).astype(np.float32)
                for key in tensors
            }
            candidate = self.with_unit(tensors, seen.row, value)
            seen.loss_after = self.loss_of(candidate)
            if forced or seen.loss_after < self.loss * (1 - self.params["tolerance"]):
                self.state, self.loss, seen.action = candidate, seen.loss_after, "merged"
                return
        seen.action = "rolled_back"


def floats(module: nn.Module) -> State:
    """The floating tensors of a module as arrays."""
    return {
        name: tensor.detach().numpy().copy()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
