"""Convolutions: what a weight meets at each place, and channels that reach a linear layer each by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import Candidates, PlainEvaluator
from cogram_core.evaluation.fast import FastEvaluator
from cogram_core.networks.network import Network

DOUBLE = torch.float64


class Functional(nn.Module):
    """Rectifies, pools and flattens without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(45, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(nn.functional.max_pool2d(torch.relu(self.first(inputs)), 2).flatten(1))


class Beside(nn.Module):
    """Adds to the pooled channels what another layer makes of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.aside = nn.Linear(36, 9)
        self.first, self.last = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(45, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        added = self.aside(inputs[:, 0].flatten(1)).view(-1, 1, 3, 3)
        return self.last((nn.functional.avg_pool2d(self.first(inputs), 2) + added).flatten(1))


def then(convolution: nn.Module, places: int, *between: nn.Module) -> nn.Module:
    """A convolution of five channels, other modules, and a linear layer; then one more."""
    return nn.Sequential(
        convolution, *between, nn.Flatten(), nn.Linear(5 * places, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)
    )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "pool": (lambda: then(nn.Conv2d(2, 5, 3), 4, nn.ReLU(), nn.MaxPool2d(2)), (2, 6, 6), "channels"),
    "in place": (lambda: then(nn.Conv2d(2, 5, 3), 16, nn.ReLU(inplace=True)), (2, 6, 6), "channels"),
    "mean": (lambda: then(nn.Conv2d(2, 5, 3), 1, nn.GELU(), nn.AdaptiveAvgPool2d(1)), (2, 6, 6), "channels"),
    "functional": (Functional, (2, 6, 6), "channels"),
    "recorded beside": (Beside, (2, 6, 6), "channels"),
    "one dimension": (lambda: then(nn.Conv1d(2, 5, 4, stride=3, padding=2), 4), (2, 9), "channels"),
    "three dimensions": (
        lambda: then(nn.Conv3d(2, 5, (2, 1, 3), dilation=(2, 1, 1), bias=False), 8, nn.ReLU()),
        (2, 4, 2, 4),
        "channels",
    ),
    "around the corner": (
        lambda: then(nn.Conv2d(2, 5, 3, padding=(2, 1), padding_mode="circular"), 48),
        (2, 6, 6),
        "channels",
    ),
    "reflected": (lambda: then(nn.Conv2d(2, 5, 3, padding="same", padding_mode="reflect"), 36), (2, 6, 6), "channels"),
    "same": (lambda: then(nn.Conv2d(2, 5, (3, 2), padding="same", dilation=(1, 2)), 36), (2, 6, 6), "channels"),
    "norm": (lambda: then(nn.Conv2d(2, 5, 3), 16, nn.BatchNorm2d(5), nn.ReLU()), (2, 6, 6), "columns"),
    "mixed channels": (lambda: then(nn.Conv2d(2, 5, 3), 16, nn.Softmax(dim=1)), (2, 6, 6), "columns"),
    "mixed places": (lambda: then(nn.Conv2d(2, 5, 3), 16, nn.Softmax(dim=0)), (2, 6, 6), "none"),
}


@pytest.mark.parametrize("count", [5, 1025])
@pytest.mark.parametrize("name", CASES)
def test_losses_are_those_of_full_passes(name: str, count: int) -> None:
    make, shape, kind = CASES[name]
    torch.manual_seed(3)
    network = Network(make().to(DOUBLE), torch.rand(1, *shape, dtype=DOUBLE))
    data = Dataset(torch.randn(count, *shape, dtype=DOUBLE), torch.randint(3, (count,)))
    fast, plain = FastEvaluator(network, data), PlainEvaluator(network, data)
    layer = next(layer for layer in network.layers if len(layer.shapes[0]) > 2)
    chosen = fast._kind(layer)
    assert (chosen.name if chosen else "none") == kind
    for turn in range(4):
        rows = torch.randint(layer.neurons, (6,))
        columns, values = None, torch.randn(6, layer.width, dtype=DOUBLE)
        if turn % 2:
            columns, values = torch.randint(layer.width, (6,)), torch.randn(6, dtype=DOUBLE)
            columns[0] = layer.width - 1
        candidates = Candidates(layer, rows, columns, values)
        assert fast.losses(candidates) == pytest.approx(plain.losses(candidates), rel=1e-11)
        fast.moving(candidates, turn)
        if columns is None:
            network.assign_row(layer, int(rows[turn]), values[turn])
        else:
            network.assign_weight(layer, int(rows[turn]), int(columns[turn]), values[turn])
