"""Candidates a second on a GPU against a CPU, and how often the host waits for the device. `make bench-gpu`

784-512-512-10 with 200 prototypes, and a wider network on which a GPU has more to do; 512 neurons of the first layer
with random values. Kernel and copy counts come from torch's profiler: what makes the host wait must go with
the batches, not with the candidates, or the program ends with an error.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bench.evaluator import wide_task
from cogram_core.determinism import repeatable, resolve_device
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import Candidates
from cogram_core.evaluation.fast import FastEvaluator
from cogram_core.networks.network import Network

WINDOW, NEURONS = 64, 512
REPEATS = 5
WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
COPIED = "Memcpy DtoH"


class Case:
    """One network and its data on one device, ready to score windows of neurons of its first layer."""

    def __init__(self, module: nn.Module, inputs: Tensor, targets: Tensor, device: torch.device) -> None:
        self.device = device
        self.network = Network(module.double().to(device), inputs[:1].double().to(device))
        self.evaluator = FastEvaluator(self.network, Dataset(inputs.double(), targets).to(device))
        self.layer = self.network.layers[0]
        random = torch.Generator().manual_seed(0)
        values = torch.randn(NEURONS, self.layer.width, generator=random, dtype=torch.float64)
        self.values = 0.1 * values.to(device)
        self.sweep()  # opens the layer, and warms the device up

    def sweep(self) -> tuple[int, int]:
        """Scores every neuron once; how many candidates and how many windows that were."""
        for first in range(0, NEURONS, WINDOW):
            rows = torch.arange(first, first + WINDOW)
            self.evaluator.losses(Candidates(self.layer, rows, None, self.values[first : first + WINDOW]))
        return NEURONS, NEURONS // WINDOW

    def per_second(self) -> float:
        """Candidates a second, the median of several sweeps; the last losses are on the host when the clock stops."""
        rates = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            count, _ = self.sweep()
            rates.append(count / (time.perf_counter() - start))
        return statistics.median(rates)

    def waits(self) -> Counter[str]:
        """How often a sweep waits for the device or copies from it, by the profiler's names."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            self.sweep()
        found: Counter[str] = Counter()
        for event in seen.events():
            found.update(name for name in (*WAITING, COPIED) if event.name.startswith(name))
        return found


def networks() -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
    """By name: module, inputs, targets."""
    task = wide_task()
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(784, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 10))
    modules = {"784-512-512-10": task.sources[0], "784-2048-2048-10": wide}
    return {name: (module.eval(), task.inputs, task.targets) for name, module in modules.items()}


def main() -> int:
    if not torch.cuda.is_available():
        print("this machine has no CUDA device, and this benchmark compares one with the CPU")
        return 1
    held = True
    print("| network | CPU, candidates a second | GPU | ratio | waits, copies to the host | windows | candidates |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (module, inputs, targets) in networks().items():
        rates = []
        for device in (torch.device("cpu"), resolve_device("cuda")):
            with repeatable(1, device):
                case = Case(module, inputs, targets, device)
                rates.append(case.per_second())
        with repeatable(1, case.device):
            found, (candidates, windows) = case.waits(), case.sweep()
        waits, copies = sum(found[wait] for wait in WAITING), found[COPIED]
        held &= waits <= 2 * windows + 2 and copies <= windows + 2  # the profiler itself waits at its ends
        figures = f"{rates[0]:,.0f} | {rates[1]:,.0f} | {rates[1] / rates[0]:.1f} | {waits}, {copies}"
        print(f"| {name} | {figures} | {windows} | {candidates} |", flush=True)
    if not held:
        print("the host waits more often than once a window")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
