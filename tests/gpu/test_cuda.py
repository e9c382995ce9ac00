"""What only a machine with a CUDA device can show. `make test-gpu`"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cogram_core import fuse_modules
from cogram_core.determinism import repeatable
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import Candidates, PlainEvaluator
from cogram_core.evaluation.fast import FastEvaluator
from cogram_core.networks.network import Network
from cogram_core.trace import Decision
from tests.core.factories import conv_net, mlp, points, random, specialists

pytestmark = pytest.mark.gpu

builds = pytest.mark.parametrize("build", [mlp, conv_net], ids=["mlp", "convolutions"])


@pytest.fixture(autouse=True)
def device() -> torch.device:
    if not torch.cuda.is_available():
        pytest.fail("this machine has no CUDA device, and these tests need one; make test runs all others")
    return torch.device("cuda")


def data_for(build: Callable[..., nn.Sequential]) -> tuple[torch.Tensor, torch.Tensor]:
    return points(77, 40, (1, 4, 4), 3) if build is conv_net else points(77, 40)


def decisions(build: Callable[..., nn.Sequential], granularity: str, device: str) -> list[Decision]:
    # Below layer level the network runs in float64 by itself; here it does so at layer level, too.
    stages: list[Any] = ["linear", {"method": "cogram", "granularity": granularity, "max_decisions": 300}]
    data = {"evaluation": data_for(build)}
    sources = specialists(1, build=build)
    result = fuse_modules(sources, stages=stages, data=data, guard="off", compute_dtype="float64", device=device)
    return list(result.trace.decisions())


def evaluators(build: Callable[..., nn.Sequential], device: torch.device) -> tuple[Network, FastEvaluator, Dataset]:
    inputs, targets = data_for(build)
    network = Network(build(2).double().to(device), inputs[:1].double().to(device))
    data = Dataset(inputs.double(), targets).to(device)
    return network, FastEvaluator(network, data), data


def shaken_rows(network: Network, place: int, count: int) -> Candidates:
    layer = network.layers[place]
    rows = torch.arange(count) % layer.neurons
    noise = torch.randn(count, layer.width, generator=random(3), dtype=torch.float64)
    return Candidates(layer, rows, None, noise.to(network.device))


@builds
@pytest.mark.parametrize("granularity", ["layer", "neuron", "weight"])
def test_a_gpu_takes_the_decisions_of_a_cpu(build: Callable[..., nn.Sequential], granularity: str) -> None:
    expected, found = (decisions(build, granularity, device) for device in ("cpu", "cuda"))
    assert [(d.layer, d.row, d.column, d.action, d.step) for d in found] == [
        (d.layer, d.row, d.column, d.action, d.step) for d in expected
    ]
    for one, other in zip(found, expected, strict=True):
        if one.shares is not None:
            assert one.shares == pytest.approx(other.shares, abs=2**-15)


@builds
def test_candidates_side_by_side_have_the_losses_of_full_passes(
    build: Callable[..., nn.Sequential], device: torch.device
) -> None:
    network, fast, data = evaluators(build, device)
    with repeatable(1, device):
        for place in (0, -1):
            candidates = shaken_rows(network, place, 4)
            expected = PlainEvaluator(network, data).losses(candidates)
            assert fast.losses(candidates) == pytest.approx(expected, rel=1e-9)


@builds
def test_the_host_waits_as_often_for_many_candidates_as_for_few(
    build: Callable[..., nn.Sequential], device: torch.device
) -> None:
    network, fast, _ = evaluators(build, device)
    waits = []
    with repeatable(1, device):
        for count in (2, 2, 48):  # the first opens the layer
            candidates = shaken_rows(network, 0, count)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as heard:
                    warnings.simplefilter("always")
                    fast.losses(candidates)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            waits.append(sum("synchroniz" in str(warning.message) for warning in heard))
    assert 1 <= waits[1] == waits[2]


@builds
def test_a_recipe_gives_the_same_numbers_every_time(build: Callable[..., nn.Sequential]) -> None:
    data = {"evaluation": data_for(build)}
    one, other = (
        fuse_modules(
            specialists(1, build=build), stages=["linear", "cogram"], data=data, guard="off", device="cuda"
        ).module.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
