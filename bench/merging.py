"""Data-driven merging: test accuracy of average, Fisher, RegMean, Chain of Merges, alignment, further methods and `auto`.

`python -m bench.merging` prints Markdown tables with paired differences and whether what is promised holds, and ends with an
error if it doesn't. Two tasks:

- *four tasks*: scikit-learn's digits as they are, turned by 90°, mirrored and inverted. One base, four experts, each trained
  on one of the four; a fused network is judged on all four, the experts on their own.
- *20 classes*: `bench.tasks`, two sources, IID or skewed, of the same or of different initialisations.

No fusion sees test data.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bench.tasks import SETTINGS, Examples, Task, accuracy, load
from cogram_core import fuse_modules
from cogram_core.methods.auto import likeness
from cogram_core.sources import LoadedSource, MemoryStore

SEEDS = range(8)
GAP_FLOOR = 85.0  # % of the way from the average to the experts that Chain of Merges has to go
SKEW_FLOOR = 5.0  # points above the better source, from different initialisations with skewed labels
AUTO_FLOOR = -0.5  # points that `auto` may be below the best of what it is made of
TASKS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda images: images,
    "turned": lambda images: torch.rot90(images, 1, (1, 2)),
    "mirrored": lambda images: images.flip(2),
    "inverted": lambda images: 1 - images,
}
FOUR: Mapping[str, Sequence[Any]] = {
    "plain average": ["linear"],
    "Fisher": ["fisher"],
    "RegMean": ["regmean"],
    "RegMean++": [{"method": "regmean", "prefix": "merged"}],
    "Chain of Merges": ["chain_of_merges"],
    "Chain of Merges, propagated target": [{"method": "chain_of_merges", "target": "propagated"}],
    "plain average, repair": ["linear", "repair"],
    "preserve_first": ["preserve_first"],
}
FROM_BASE: Mapping[str, Sequence[Any]] = {"OPCM": ["opcm"], "AdaMerging": ["adamerging"]}
TWO: Mapping[str, Sequence[Any]] = {
    "plain average": ["linear"],
    "Fisher": ["fisher"],
    "CoGraM": ["fisher", "cogram"],
    "RegMean": ["regmean"],
    "Chain of Merges": ["chain_of_merges"],
    "align, average": ["align", "linear"],
    "align, Chain of Merges": ["align", "chain_of_merges"],
    "align, Chain of Merges, CoGraM": ["align", "chain_of_merges", "cogram"],
    "auto": ["auto"],
}
TWENTY_CLASSES = ("iid-same", "skewed-same", "iid-different", "skewed-different")


@dataclass(frozen=True)
class Experts:
    """Networks that come from one base, each with examples of its own task, and the tests of all tasks."""

    base: nn.Sequential
    networks: tuple[nn.Sequential, ...]
    own: tuple[Examples, ...]
    tests: tuple[Examples, ...]


def experts(seed: int) -> Experts:
    """MLP 64-384-384-10; base: 3 epochs on 150 images; experts: 5 epochs on 500 images of their task; 797 test images."""
    digits = load_digits()
    images, targets = torch.tensor(digits.images / 16.0, dtype=torch.float32), torch.tensor(digits.target)
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(targets), generator=random)
    base_places, own_places, test_places = order[:150], order[:500], order[1000:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(700_000 + seed)
        base = nn.Sequential(nn.Linear(64, 384), nn.ReLU(), nn.Linear(384, 384), nn.ReLU(), nn.Linear(384, 10))
    _train(base, (images[base_places].flatten(1), targets[base_places]), 3, random)
    networks, own, tests = [], [], []
    for change in TASKS.values():
        seen = change(images).flatten(1).contiguous()
        own.append((seen[own_places], targets[own_places]))
        tests.append((seen[test_places], targets[test_places]))
        networks.append(_train(copy.deepcopy(base), own[-1], 5, random))
    return Experts(base, tuple(networks), tuple(own), tuple(tests))


def _train(network: nn.Sequential, share: Examples, epochs: int, random: torch.Generator) -> nn.Sequential:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.002)
    for _ in range(epochs):
        for batch in torch.randperm(len(share[1]), generator=random).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(share[0][batch]), share[1][batch]).backward()
            optimizer.step()
    return network.eval()


def four_tasks(seed: int) -> dict[str, tuple[float, float]]:
    """Mean test accuracy over the four tasks, in %, and seconds, by the name of the way."""
    given = experts(seed)
    found = {"experts, each on its own": (_mean(map(accuracy, given.networks, given.tests)), 0.0)}
    for name, stages in {**FOUR, **FROM_BASE}.items():
        start = time.perf_counter()
        base = given.base if name in FROM_BASE else None
        fused = fuse_modules(
            given.networks, stages=stages, base=base, source_data=given.own, guard="off", threads=1
        ).module
        seconds = time.perf_counter() - start
        found[name] = _mean(accuracy(fused, test) for test in given.tests), seconds
    return found


def twenty_classes(setting: str, seed: int) -> dict[str, tuple[float, float]]:
    """Test accuracy in % and seconds."""
    task: Task = load(SETTINGS[setting], seed)
    found = {"better source": (max(accuracy(network, task.test) for network in task.networks), 0.0)}
    for name, stages in TWO.items():
        start = time.perf_counter()
        fused = fuse_modules(task.networks, stages=stages, data=task.data, threads=1).module
        found[name] = accuracy(fused, task.test), time.perf_counter() - start
    return found


def likenesses() -> dict[str, list[float]]:
    """What `auto` tells sources of one origin by, for every task of this page, seed by seed."""
    found = {"four tasks": [_likeness(experts(seed).networks) for seed in SEEDS]}
    for setting in SETTINGS.values():
        found[setting.name] = [_likeness(load(setting, seed).networks) for seed in SEEDS]
    return found


def _likeness(networks: Sequence[nn.Module]) -> float:
    sources = [
        LoadedSource(str(place), 1.0, MemoryStore(str(place), network.state_dict()), torch.float32, torch.device("cpu"))
        for place, network in enumerate(networks)
    ]
    return likeness(sources, list(networks[0].state_dict()))


def _mean(values: Any) -> float:
    return statistics.fmean(values)


def _table(runs: Sequence[Mapping[str, tuple[float, float]]], reference: str) -> None:
    print(f"| | mean ± std | against {reference}, paired | worst | seconds |\n| --- | --- | --- | --- | --- |")
    for name in runs[0]:
        values = [run[name][0] for run in runs]
        differences = [run[name][0] - run[reference][0] for run in runs]
        seconds = statistics.median(run[name][1] for run in runs)
        spread = statistics.stdev(differences) / len(differences) ** 0.5
        print(
            f"| {name} | {_mean(values):.1f} ± {statistics.stdev(values):.1f} | {_mean(differences):+.1f} ± {spread:.1f} "
            f"| {min(values):.1f} | {seconds:.2f} |"
        )
    print()


def _check(what: str, value: float, floor: float) -> bool:
    held = value >= floor
    print(f"{'holds' if held else 'MISSED'}: {what}: {value:.1f} (at least {floor:g})\n")
    return held


def main() -> int:
    """Prints all tables; 1 if a promise is not kept."""
    torch.set_num_threads(1)
    print("### four tasks\n")
    runs = [four_tasks(seed) for seed in SEEDS]
    _table(runs, "plain average")
    own, average = (_mean(run[name][0] for run in runs) for name in ("experts, each on its own", "plain average"))
    held = True
    for name in ("RegMean", "Chain of Merges"):
        closed = 100 * (_mean(run[name][0] for run in runs) - average) / (own - average)
        if name == "Chain of Merges":
            held &= _check(
                "Chain of Merges closes of the gap between the average and the experts, %", closed, GAP_FLOOR
            )
        else:
            print(f"{name} closes {closed:.1f} % of the gap.\n")
    for setting in TWENTY_CLASSES:
        print(f"### 20 classes: {SETTINGS[setting].name}\n")
        runs = [twenty_classes(setting, seed) for seed in SEEDS]
        _table(runs, "better source")
        means = {name: _mean(run[name][0] for run in runs) for name in runs[0]}
        best = max(value for name, value in means.items() if name != "auto")
        held &= _check("auto against the best of all ways, points", means["auto"] - best, AUTO_FLOOR)
        if setting == "skewed-different":
            gain = means["align, Chain of Merges"] - means["better source"]
            held &= _check("align, Chain of Merges against the better source, points", gain, SKEW_FLOOR)
    print("### likeness of the sources, by which auto tells their origin\n")
    print("| | least | most |\n| --- | --- | --- |")
    for name, values in likenesses().items():
        print(f"| {name} | {min(values):.2f} | {max(values):.2f} |")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
