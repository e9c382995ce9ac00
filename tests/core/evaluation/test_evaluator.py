from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from cogram_core.evaluation import evaluator as module_under_test
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import PlainEvaluator, all_logits
from cogram_core.networks.network import Network, Unit
from tests.core.factories import mlp, points


def test_losses_of_candidates_are_those_of_networks_that_hold_them() -> None:
    inputs, targets = points(0)
    network = Network(mlp(0), inputs[:1])
    before = network.state()
    judge = PlainEvaluator(network, Dataset(inputs, targets))
    layer = network.layers[1]
    for unit in (Unit(layer), Unit(layer, 3)):
        candidates = [
            {name: value + shift for name, value in network.value(unit).items()} for shift in (0.0, 0.3, -2.0)
        ]
        expected = []
        for candidate in candidates:
            other = copy.deepcopy(network.module)
            for name, value in candidate.items():
                tensor = other.state_dict()[name]
                (tensor if unit.row is None else tensor[unit.row]).copy_(value)
            expected.append(float(nn.functional.cross_entropy(other(inputs).double(), targets)))
        assert judge.losses(unit, candidates) == pytest.approx(expected, rel=1e-9)
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state().items())


def test_a_loss_that_is_no_number_counts_as_infinite() -> None:
    inputs, targets = points(0)
    network = Network(mlp(0), inputs[:1])
    judge = PlainEvaluator(network, Dataset(inputs, targets))
    unit = Unit(network.layers[0])
    broken = {name: torch.full_like(value, math.nan) for name, value in network.value(unit).items()}
    assert judge.losses(unit, [broken]) == [math.inf]
    assert math.isfinite(judge.loss())


def test_weights_make_an_example_count_as_often_as_they_say() -> None:
    inputs, targets = points(1, 6)
    counts = torch.tensor([1, 4, 2, 1, 3, 1])
    network = Network(mlp(1), inputs[:1])
    weighted = PlainEvaluator(network, Dataset(inputs, targets, counts.double())).loss()
    repeated = PlainEvaluator(network, Dataset(inputs.repeat_interleave(counts, 0), targets.repeat_interleave(counts)))
    assert weighted == pytest.approx(repeated.loss(), rel=1e-6)


def test_batches_do_not_change_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, _ = points(2, 23)
    network = Network(mlp(2), inputs[:1])
    whole = all_logits(network, inputs)
    monkeypatch.setattr(module_under_test, "BATCH", 5)
    assert torch.allclose(all_logits(network, inputs), whole, rtol=1e-5, atol=1e-6)
