"""The evaluator against a naive one that takes every loss by a full forward pass. `python -m bench.evaluator`

Both take the same decisions, and the program ends with an error if they don't. Each side runs with its better thread
count, the sides take turns, ratios are medians. The naive side is the plain loop of CoGraM: put the unit in, run the
network, take the loss.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, zip_longest
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cogram_core import fuse_modules
from cogram_core.evaluation.losses import cross_entropy
from cogram_core.mixing import softmax_shares
from cogram_core.observer import SilentObserver, StageInfo
from cogram_core.trace import Decision

REPEATS = 5
LEAST_RATIOS = (20.0, 30.0, 30.0)  # of each sweep
STEPS = (1.0, 0.5, 0.25)
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Task:
    """Two sources, their plain average as the start, and prototypes."""

    sources: tuple[nn.Sequential, nn.Sequential]
    inputs: Tensor
    targets: Tensor


def wide_task() -> Task:
    """784-512-512-10 on scikit-learn's digits at 28 × 28, sources skewed by label, 20 geometric prototypes a class."""
    digits = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None]
    inputs = nn.functional.interpolate(images, size=(28, 28), mode="bilinear").flatten(1)
    targets = torch.tensor(digits.target)
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    chosen = torch.randperm(len(targets))
    training, rest = chosen[:1000], chosen[1000:]
    sources = tuple(_train(copy.deepcopy(start), inputs[training], targets[training], low) for low in (True, False))
    kept = torch.cat([rest[targets[rest] == label][:20] for label in range(10)])
    return Task(sources, inputs[kept].contiguous(), targets[kept].contiguous())  # type: ignore[arg-type]


def _train(network: nn.Sequential, inputs: Tensor, targets: Tensor, low: bool) -> nn.Sequential:
    own = ((targets < 5) == low) | (torch.rand(len(targets)) < 0.1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(8):
        for batch in torch.nonzero(own)[:, 0].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return network.eval()


class Naive:
    """CoGraM's neuron and weight level by full forward passes, unit by unit."""

    def __init__(self, task: Task, dtype: torch.dtype) -> None:
        start = fuse_modules(task.sources, stages=["linear"]).module
        self.network = start.to(dtype)
        self.sources = [copy.deepcopy(source).to(dtype) for source in task.sources]
        self.inputs, self.targets = task.inputs.to(dtype), task.targets
        self.loss = self._loss()

    def _loss(self) -> float:
        with torch.no_grad():
            return float(cross_entropy(self.network(self.inputs), self.targets).mean())

    def neurons(self) -> Iterator[tuple[str, int, str]]:
        """One sweep; yields layer, row and what was done."""
        for name, layer in reversed(list(self.network.named_children())):
            if isinstance(layer, nn.Linear):
                for row in range(layer.out_features):
                    parts = [self._row(module.get_submodule(name), row) for module in (self.network, *self.sources)]
                    yield name, row, self._visit(parts[0], parts[1:], layer.out_features)

    def weights(self, name: str, first: int, last: int) -> Iterator[tuple[str, int, str]]:
        """The weights of some neurons of one layer, biases last."""
        layers = [module.get_submodule(name) for module in (self.network, *self.sources)]
        siblings = layers[0].weight.numel() + layers[0].bias.numel()
        for row in range(first, last):
            for column in range(layers[0].in_features + 1):
                bias = column == layers[0].in_features
                parts = [[layer.bias[row] if bias else layer.weight[row, column]] for layer in layers]
                yield name, row * (layers[0].in_features + 1) + column, self._visit(parts[0], parts[1:], siblings)

    @staticmethod
    def _row(layer: Any, row: int) -> list[Tensor]:
        return [layer.weight[row], layer.bias[row]]

    @torch.no_grad()
    def _visit(self, current: list[Tensor], sources: Sequence[list[Tensor]], siblings: int) -> str:
        if all(torch.equal(now, part) for source in sources for now, part in zip(current, source, strict=True)):
            return "skipped"
        kept = [part.clone() for part in current]
        losses = [self._with(current, source) for source in sources]
        shares = softmax_shares(losses, siblings)
        targets = [
            sum(s * p.double() for s, p in zip(shares, parts, strict=True)) for parts in zip(*sources, strict=True)
        ]
        for step in STEPS:
            moved = [(now.double() + step * (to - now.double())).float() for now, to in zip(kept, targets, strict=True)]
            loss = self._with(current, moved)
            if loss < self.loss * (1 - TOLERANCE):
                self.loss = loss
                return "merged"
        for part, old in zip(current, kept, strict=True):
            part.copy_(old)
        return "rolled_back"

    def _with(self, current: list[Tensor], value: Sequence[Tensor]) -> float:
        for part, new in zip(current, value, strict=True):
            part.copy_(new)
        return self._loss()


class Clock(SilentObserver):
    """Keeps the decisions, and the time at which each sweep's last one came."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []
        self.ends: dict[int, float] = {}
        self.start = 0.0

    def decision(self, decision: Decision) -> None:
        if decision.stage == 1:
            self.decisions.append(decision)
            self.ends[decision.sweep] = time.perf_counter()

    def stage_started(self, _: StageInfo) -> None:
        self.start = time.perf_counter()


def engine(task: Task, parameters: dict[str, Any], threads: int) -> Clock:
    """The project's own run of one stage."""
    clock = Clock()
    stage = {"method": "cogram", "prototypes": {"kind": "all"}, "min_gain": 0, **parameters}
    data = {"evaluation": (task.inputs, task.targets)}
    fuse_modules(task.sources, stages=["linear", stage], data=data, guard="off", threads=threads, observer=clock)
    return clock


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def neuron_rows(task: Task, sweeps: int) -> Iterator[tuple[list[float], list[float]]]:
    """Seconds of each sweep, naive and engine, alternating; ends with an error if a decision differs."""
    steepness = {"steepness": {"neuron": 1.0}}
    naive_threads, engine_threads = best_threads(task)
    print(
        f"naive with {naive_threads} threads, engine with {engine_threads}; whichever was quicker for each\n",
        flush=True,
    )
    parameters = {"granularity": "neuron", "max_sweeps": {"layer": 0, "neuron": sweeps}, **steepness}
    for _ in range(REPEATS):
        clock = engine(task, parameters, engine_threads)
        ends = [clock.start, *clock.ends.values()]
        torch.set_num_threads(naive_threads)
        naive = Naive(task, torch.float64)
        seconds, decisions = [], []
        for _ in range(sweeps):
            took, found = timed(partial(list, naive.neurons()))
            seconds.append(took)
            decisions += found
        agree(clock.decisions, decisions)
        yield seconds, [after - before for before, after in pairwise(ends)]


def agree(found: Sequence[Decision], expected: Sequence[tuple[str, int, str]]) -> None:
    """Ends the program if the two sides decided differently."""
    ours = [(decision.layer, decision.row, decision.action) for decision in found]
    for at, (one, other) in enumerate(zip_longest(ours, expected)):
        if one != other:
            raise SystemExit(f"decision {at} differs: engine {one}, naive {other}")


def best_threads(task: Task) -> tuple[int, int]:
    """The thread counts, 1 or 2, at which the naive loss and the engine's first decisions are quickest."""
    naive = Naive(task, torch.float64)
    parameters = {"granularity": "neuron", "max_sweeps": {"layer": 0, "neuron": 1}, "max_decisions": 700}
    plain, ours = {}, {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        naive._loss()
        plain[threads] = min(timed(naive._loss)[0] for _ in range(30))
        ours[threads] = min(timed(partial(engine, task, parameters, threads))[0] for _ in range(2))
    return min(plain, key=plain.__getitem__), min(ours, key=ours.__getitem__)


def main() -> int:
    """Prints the table; 1 if a sweep's median ratio is below what is asked for."""
    task = wide_task()
    sweeps, missed = len(LEAST_RATIOS), 0
    rows = list(neuron_rows(task, sweeps))
    print("| neuron level, 784-512-512-10, 200 prototypes | naive | engine | ratio (least to most) |")
    print("| --- | --- | --- | --- |")
    for sweep in range(sweeps):
        naive, ours = ([row[side][sweep] for row in rows] for side in (0, 1))
        ratios = sorted(slow / quick for slow, quick in zip(naive, ours, strict=True))
        median = statistics.median
        print(
            f"| sweep {sweep + 1} | {median(naive):.1f} s | {median(ours):.2f} s |"
            f" {median(ratios):.1f} × ({ratios[0]:.1f}–{ratios[-1]:.1f}) |",
            flush=True,
        )
        missed += median(ratios) < LEAST_RATIOS[sweep]
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
