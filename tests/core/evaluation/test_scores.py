from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from cogram_core.evaluation import scores as module_under_test
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.scores import calibrate, score
from cogram_core.networks.network import Network
from tests.core.factories import initialise, mlp, points, random

seeds = st.integers(0, 2**31)


def mean_losses(
    logits: NDArray[np.float64], targets: NDArray[np.int64], temperatures: NDArray[np.float64]
) -> list[float]:
    found = []
    for temperature in temperatures:
        z = logits / temperature
        z = z - z.max(axis=1, keepdims=True)
        found.append(float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), targets]).mean()))
    return found


@settings(deadline=None, max_examples=12)
@given(seeds, st.floats(-2.5, 2.5), st.floats(0, 4))
def test_no_temperature_on_a_fine_grid_beats_the_one_found(seed: int, log_scale: float, signal: float) -> None:
    targets = torch.randint(0, 5, (40,), generator=random(seed))
    logits = torch.randn(40, 5, generator=random(seed + 1)) + signal * nn.functional.one_hot(targets, 5)
    logits *= 10**log_scale
    temperature, loss = calibrate(logits, targets)
    wide, labels = logits.double().numpy(), targets.numpy()
    grid = mean_losses(wide, labels, np.geomspace(0.01, 100, 2001))
    assert 0.01 * (1 - 1e-9) <= temperature <= 100 * (1 + 1e-9)
    assert loss <= min(grid) + 1e-9
    assert loss == pytest.approx(mean_losses(wide, labels, np.array([temperature]))[0], rel=1e-9, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(-4, 4))
def test_calibration_is_never_worse_than_none(seed: int, log_scale: float) -> None:
    logits = torch.randn(6, 3, generator=random(seed)) * 10**log_scale
    targets = torch.randint(0, 3, (6,), generator=random(seed + 1))
    plain = float(nn.functional.cross_entropy(logits.double(), targets))
    assert calibrate(logits, targets)[1] <= plain * (1 + 1e-12)


def test_constant_logits_lose_the_logarithm_of_the_classes_at_any_temperature() -> None:
    temperature, loss = calibrate(torch.full((7, 4), 3.0), torch.arange(7) % 4)
    assert loss == pytest.approx(math.log(4), rel=1e-12)
    assert math.isfinite(temperature)


def test_calibration_of_logits_that_are_no_numbers_changes_nothing() -> None:
    temperature, loss = calibrate(torch.tensor([[math.nan, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert temperature == 1.0
    assert math.isnan(loss)


@settings(deadline=None, max_examples=10)
@given(seeds)
def test_scores_agree_with_scikit_learn_overall_and_per_class(seed: int) -> None:
    inputs, targets = points(seed, 50)
    targets[targets == 2] = 1  # a class without examples
    module = mlp(seed)
    found = score(Network(module, inputs[:1]), Dataset(inputs, targets))
    with torch.no_grad():
        logits = module(inputs).double()
    probabilities, labels = torch.softmax(logits, 1).numpy(), targets.numpy()
    assert found.examples == 50
    assert found.loss == pytest.approx(log_loss(labels, probabilities, labels=[0, 1, 2, 3]), rel=1e-9)
    assert found.accuracy == pytest.approx(accuracy_score(labels, logits.argmax(1).numpy()))
    assert [entry.target for entry in found.classes] == sorted(set(labels.tolist()))
    for entry in found.classes:
        rows = [at for at, label in enumerate(labels) if label == entry.target]
        losses = [-math.log(probabilities[at][entry.target]) for at in rows]
        assert entry.examples == len(rows)
        assert entry.loss == pytest.approx(sum(losses) / len(rows), rel=1e-9)
        hits = sum(int(probabilities[at].argmax()) == entry.target for at in rows)
        assert entry.accuracy == pytest.approx(hits / len(rows))


def test_a_criterion_is_smaller_where_a_network_is_better_and_infinite_where_it_is_no_number() -> None:
    inputs, targets = points(3)
    network = Network(mlp(3), inputs[:1])
    found = score(network, Dataset(inputs, targets))
    assert found.accuracy is not None
    assert found.criterion("accuracy") == -found.accuracy
    assert found.criterion("loss") == found.loss
    assert found.criterion("calibrated_loss") == found.calibrated_loss
    network.tensor("0.bias")[:] = math.nan
    broken = score(network, Dataset(inputs, targets))
    assert broken.criterion("loss") == broken.criterion("calibrated_loss") == math.inf
    assert broken.to_document()["loss"] is None
    assert broken.to_document()["classes"][0]["loss"] is None


def naive_tokens(network: nn.Module, ids: torch.Tensor, labels: torch.Tensor) -> list[tuple[list[float], int]]:
    """Scores and label of every predicted token, one sequence and one place at a time."""
    found = []
    for sentence, expected in zip(ids, labels.tolist(), strict=True):
        with torch.no_grad():
            scores = network(sentence[None])[0].double().tolist()
        found += [(scores[at - 1], expected[at]) for at in range(1, len(expected)) if expected[at] != -100]
    return found


@pytest.mark.parametrize("elements", [2**22, 40])
def test_scores_of_token_data_are_means_over_tokens(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_under_test, "_ELEMENTS", elements)
    module = initialise(nn.Sequential(nn.Embedding(7, 4), nn.Tanh(), nn.Linear(4, 7)), 0, 1.0)
    ids = torch.randint(0, 7, (13, 5), generator=random(0))
    labels = torch.where(torch.rand(13, 5, generator=random(1)) < 0.4, -100, ids)
    labels[:, 1] = ids[:, 1]
    found = score(Network(module, ids[:1]), Dataset(ids, labels))
    tokens = naive_tokens(module, ids, labels)
    rows, targets = np.array([row for row, _ in tokens]), np.array([target for _, target in tokens])
    assert found.examples == 13
    assert found.loss == pytest.approx(mean_losses(rows, targets, np.ones(1))[0], rel=1e-6)
    assert found.accuracy == pytest.approx(float((rows.argmax(1) == targets).mean()))
    assert found.classes == ()
    grid = mean_losses(rows, targets, np.geomspace(0.01, 100, 501))
    assert found.calibrated_loss <= min(grid) + 1e-7
    at_temperature = mean_losses(rows, targets, np.array([found.temperature]))[0]
    assert found.calibrated_loss == pytest.approx(at_temperature, rel=1e-6)


def test_values_have_a_loss_and_nothing_else() -> None:
    inputs, _ = points(5, 30)
    values = torch.randn(30, 4, generator=random(6))
    module = mlp(5)
    found = score(Network(module, inputs[:1]), Dataset(inputs, values))
    with torch.no_grad():
        expected = float((module(inputs).double() - values.double()).square().mean())
    assert found.loss == found.calibrated_loss == found.criterion("loss") == found.criterion("calibrated_loss")
    assert found.loss == pytest.approx(expected, rel=1e-6)
    assert (found.temperature, found.accuracy, found.classes) == (1.0, None, ())
    assert found.to_document()["accuracy"] is None


def test_batches_do_not_change_the_score(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = points(7, 60)
    network = Network(mlp(7), inputs[:1])
    whole = score(network, Dataset(inputs, targets))
    monkeypatch.setattr(module_under_test, "_ELEMENTS", 28)
    apart = score(network, Dataset(inputs, targets))
    assert apart.accuracy == whole.accuracy
    assert (apart.loss, apart.calibrated_loss) == pytest.approx((whole.loss, whole.calibrated_loss), rel=1e-6)
