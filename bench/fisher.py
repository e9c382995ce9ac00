"""Fisher information of 256 examples against a plain loop over them. `python -m bench.fisher`

Both take the exact one, a gradient a class, of the same untrained networks, and the program ends with an error if a value
is off by more than 1e-5 of its tensor's largest. The plain loop runs one example forward and one class after the other
backward. One thread each, as is the default of a fusion; the sides take turns, ratios are medians. Time is the processor's,
for the clock would tell of the machine's other work.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.attention import Block
from cogram_core.evaluation.datasets import Dataset
from cogram_core.networks.network import Network
from cogram_core.statistics.fisher import diagonal_fisher

EXAMPLES, CLASSES = 256, 10
REPEATS = 3
LEAST_RATIO = 5.0
TOLERANCE = 1e-5
WIDTH, HEADS, PLACES, VOCABULARY = 64, 4, 16, 500

Fisher = dict[str, Tensor]


class Classifier(nn.Module):
    """A small transformer that classifies sequences of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.blocks = nn.Sequential(*(Block(WIDTH, HEADS, causal=False) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places(places))).mean(dim=1))


def perceptron() -> nn.Module:
    """784-512-512-10."""
    return nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, CLASSES))


def convolutions() -> nn.Module:
    """Two convolutions with batch normalisation, for digits of 8 × 8."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, CLASSES)),
    )


def wide_convolutions() -> nn.Module:
    """The same, four times as large on images of 16 × 16: there each single pass has work enough."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, CLASSES)),
    )


def plain_loop(module: nn.Module, inputs: Tensor) -> Fisher:
    """E_x Σ_y p_y (∇ log p_y)², one backward pass an example and class."""
    named = dict(module.named_parameters())
    values = list(named.values())
    total = {name: torch.zeros_like(value) for name, value in named.items()}
    for example in inputs:
        log_p = torch.log_softmax(module(example[None])[0], dim=0)
        for label, p in enumerate(log_p.exp().tolist()):
            gradients = torch.autograd.grad(log_p[label], values, retain_graph=True)
            for name, gradient in zip(named, gradients, strict=True):
                total[name] += p * gradient.square()
    return {name: value / len(inputs) for name, value in total.items()}


def ours(module: nn.Module, inputs: Tensor) -> Fisher:
    """The project's own."""
    data = Dataset(inputs, torch.zeros(len(inputs), dtype=torch.int64))
    return diagonal_fisher(Network(module, inputs[:1]), data, len(inputs), "exact")


def timed(work: Callable[[], Fisher]) -> tuple[float, Fisher]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def distance(found: Fisher, expected: Fisher) -> float:
    """The largest difference, as a part of its tensor's largest value."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - value).abs().max() / value.max()) for name, value in expected.items())


def compare(name: str, build: Callable[[], nn.Module], inputs: Tensor) -> float:
    """Prints a row of the table; the median ratio.

    Raises:
        SystemExit: if the values differ.
    """
    torch.manual_seed(0)
    module = build().eval()
    seconds: list[tuple[float, float]] = []
    for _ in range(REPEATS):
        slow, expected = timed(partial(plain_loop, module.requires_grad_(True), inputs))
        quick, found = timed(partial(ours, module, inputs))
        seconds.append((slow, quick))
        if (off := distance(found, expected)) > TOLERANCE:
            raise SystemExit(f"{name}: off by {off:.1e}")
    ratios = sorted(slow / quick for slow, quick in seconds)
    loop, engine = (statistics.median(side) for side in zip(*seconds, strict=True))
    print(
        f"| {name} | {loop:.1f} s | {engine:.2f} s | {statistics.median(ratios):.1f} × ({ratios[0]:.1f}–{ratios[-1]:.1f})"
        f" | {off:.0e} |",
        flush=True,
    )
    return statistics.median(ratios)


def main() -> int:
    """Prints the table; 1 if a median ratio is below what is asked for."""
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(1)
    tasks: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
        "784-512-512-10": (perceptron, torch.randn(EXAMPLES, 784, generator=random)),
        "convolutions, 8 × 8": (convolutions, torch.randn(EXAMPLES, 1, 8, 8, generator=random)),
        "two transformer blocks": (Classifier, torch.randint(0, VOCABULARY, (EXAMPLES, PLACES), generator=random)),
    }
    large = {"convolutions, 16 × 16": (wide_convolutions, torch.randn(EXAMPLES, 3, 16, 16, generator=random))}
    print(f"| {EXAMPLES} examples, {CLASSES} classes | plain loop | here | ratio (least to most) | off by |")
    print("| --- | --- | --- | --- | --- |")
    ratios = [compare(name, build, inputs) for name, (build, inputs) in tasks.items()]
    for name, (build, inputs) in large.items():  # no more is asked of it than the same values
        compare(name, build, inputs)
    return int(min(ratios) < LEAST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
