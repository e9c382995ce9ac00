"""Test accuracy on label-skewed digits over 10 seeds: sources, plain average, Fisher, CoGraM. `python -m bench.digits`"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cogram_core import fuse_modules
from examples.clinics import Clinics, accuracy, mlp, train_clinics

SEEDS = range(10)
LAYER = {"method": "cogram", "granularity": "layer"}
NEURON = {"method": "cogram", "granularity": "neuron"}
PIPELINES: Mapping[str, tuple[Sequence[Any], str]] = {
    "plain average": (["linear"], "report"),
    "Fisher": (["fisher"], "report"),
    "Fisher, CoGraM layer, guard": (["fisher", LAYER], "best_on_holdout"),
    "Fisher, CoGraM layer and neuron, guard": (["fisher", NEURON], "best_on_holdout"),
}


def cnn() -> nn.Sequential:
    """Two convolutions of 16 and 32 channels, then a linear layer: 10,090 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def measure(clinics: Clinics) -> tuple[dict[str, float], dict[str, float]]:
    """Test accuracy and seconds by name."""
    one, two = (accuracy(network, clinics.test) for network in clinics.networks)
    found, seconds = {"better source": max(one, two), "worse source": min(one, two)}, {}
    data = {"evaluation": clinics.evaluation, "holdout": clinics.holdout}
    for name, (stages, guard) in PIPELINES.items():
        start = time.perf_counter()
        fused = fuse_modules(clinics.networks, stages=stages, data=data, guard=guard)
        seconds[name] = time.perf_counter() - start
        found[name] = accuracy(fused.module, clinics.test)
    return found, seconds


def main() -> None:
    torch.set_num_threads(1)
    for title, make in (("MLP 64-64-32-10", mlp), ("convolution network", cnn)):
        runs = [measure(train_clinics(seed, make)) for seed in SEEDS]
        print(f"\n{title}, {len(runs)} seeds, test accuracy in %\n")
        print(
            "| | mean ± std | worst | worst against the better source | median seconds |\n| --- | --- | --- | --- | --- |"
        )
        for name in runs[0][0]:
            values = torch.tensor([100 * found[name] for found, _ in runs])
            against = min(100 * (found[name] - found["better source"]) for found, _ in runs)
            spent = sorted(seconds[name] for _, seconds in runs if name in seconds)
            took = f"{spent[len(spent) // 2]:.2f}" if spent else ""
            print(
                f"| {name} | {values.mean():.1f} ± {values.std():.1f} | {values.min():.1f} | {against:+.1f} | {took} |"
            )


if __name__ == "__main__":
    main()
