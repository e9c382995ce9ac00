from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cogram_core.evaluation import losses as module_under_test
from cogram_core.evaluation.losses import cross_entropy, example_losses, predicted_tokens, weighted_mean
from cogram_core.preflight import LossKind
from tests.core.factories import random


def reference(row: list[float], target: int) -> float:
    """ln(1 + Σ exp(z_k − z_t)) with 100 digits."""
    with localcontext() as context:
        context.prec = 100
        rest = sum((Decimal(z) - Decimal(row[target])).exp() for at, z in enumerate(row) if at != target)
        # Below 1e-40 the logarithm's first term has all the digits that a float can show.
        return float(rest) if rest < Decimal("1e-40") else float((1 + rest).ln())


def loss_of(row: list[float], target: int) -> float:
    return float(cross_entropy(torch.tensor([row]), torch.tensor([target]))[0])


@settings(deadline=None, max_examples=150)
@given(st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=6), st.data())
def test_a_loss_agrees_with_a_hundred_digits(row: list[float], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(row) - 1))
    assert loss_of(row, target) == pytest.approx(reference(row, target), rel=1e-12, abs=0)


@pytest.mark.parametrize("exponent", [9, 12, 30, 100, 300])
def test_a_tiny_loss_keeps_its_digits(exponent: int) -> None:
    gap = exponent * math.log(10)
    row = torch.tensor([[gap, 0.0]], dtype=torch.float64)
    exact = reference(row[0].tolist(), 0)
    assert float(cross_entropy(row, torch.tensor([0]))[0]) == pytest.approx(exact, rel=1e-12, abs=0)
    assert exact == pytest.approx(10.0**-exponent, rel=1e-9, abs=0)


@pytest.mark.parametrize("size", [1e4, 1e30, 3e38])
def test_huge_logits_overflow_nothing(size: float) -> None:
    assert loss_of([size, -size, 0.0], 0) == 0.0
    assert loss_of([size, -size, 0.0], 1) == pytest.approx(2 * torch.tensor(size).item(), rel=1e-12)
    assert loss_of([size, size], 0) == pytest.approx(math.log(2), rel=1e-15)


def test_a_class_without_probability_adds_nothing() -> None:
    assert loss_of([1.0, -math.inf, 2.0], 0) == pytest.approx(reference([1.0, 2.0], 0), rel=1e-12)
    assert loss_of([1.0, -math.inf], 0) == 0.0


def test_a_target_without_probability_costs_infinity() -> None:
    assert loss_of([-math.inf, 0.0, 1.0], 0) == math.inf
    assert loss_of([0.0, math.inf, 1.0], 0) == math.inf
    assert loss_of([math.inf, 0.0, 1.0], 0) == 0.0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_logit_that_is_not_a_number_gives_a_loss_that_is_none(place: int) -> None:
    row = [0.0, 1.0, 2.0]
    row[place] = math.nan
    assert math.isnan(loss_of(row, 1))


def test_each_example_has_its_own_loss() -> None:
    rows = torch.tensor([[0.0, 1.0], [math.nan, 1.0], [5.0, -5.0]])
    losses = cross_entropy(rows, torch.tensor([0, 0, 0]))
    assert losses.dtype == torch.float64
    assert [math.isnan(loss) for loss in losses.tolist()] == [False, True, False]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0.01, 100)), min_size=1, max_size=20))
def test_a_weighted_mean_is_the_mean_of_repeated_examples(pairs: list[tuple[float, float]]) -> None:
    losses, weights = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    exact = math.fsum(a * b for a, b in pairs) / math.fsum(b for _, b in pairs)
    assert weighted_mean(losses, weights) == pytest.approx(exact, rel=1e-12)
    assert weighted_mean(losses, None) == pytest.approx(math.fsum(a for a, _ in pairs) / len(pairs), rel=1e-12)


def long_losses(kind: LossKind, outputs: Tensor, targets: Tensor) -> list[float]:
    """The definitions, example by example and number by number, in extended precision."""
    if kind == "mean_squared_error":
        pairs = zip(outputs.flatten(1).tolist(), targets.reshape(len(targets), -1).tolist(), strict=True)
        return [float(np.mean([np.longdouble(z - t) ** 2 for z, t in zip(*pair, strict=True)])) for pair in pairs]
    if kind == "cross_entropy":
        rows = outputs.double().numpy().astype(np.longdouble)
        return [float(_long_nll(row, target)) for row, target in zip(rows, targets.tolist(), strict=True)]
    found = []
    for sequence, labels in zip(outputs.double().numpy().astype(np.longdouble), targets.tolist(), strict=True):
        tokens = [_long_nll(sequence[at - 1], labels[at]) for at in range(1, len(labels)) if labels[at] != -100]
        found.append(float(sum(tokens) / len(tokens)))
    return found


def _long_nll(row: NDArray[np.longdouble], target: int) -> np.longdouble:
    return np.longdouble(np.log(np.exp(row - row.max()).sum()) - (row[target] - row.max()))


@st.composite
def judged(draw: st.DrawFn) -> tuple[LossKind, Tensor, Tensor]:
    """Outputs and targets of any of the losses."""
    kind = draw(st.sampled_from(["cross_entropy", "mean_squared_error", "causal_lm"]))
    generator = random(draw(st.integers(0, 2**31)))
    count, classes = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    scale = draw(st.sampled_from([0.1, 3.0, 30.0]))
    if kind == "causal_lm":
        length = draw(st.integers(2, 6))
        labels = torch.randint(0, classes, (count, length), generator=generator)
        labels[torch.rand(count, length, generator=generator) < 0.4] = -100
        labels[:, -1] = torch.where(predicted_tokens(labels) == 0, 0, labels[:, -1])
        return kind, scale * torch.randn(count, length, classes, generator=generator, dtype=dtype), labels
    if kind == "cross_entropy":
        targets = torch.randint(0, classes, (count,), generator=generator)
        return kind, scale * torch.randn(count, classes, generator=generator, dtype=dtype), targets
    shape = draw(st.sampled_from([(count, 1), (count, classes), (count, 2, classes)]))
    values = torch.randn(shape, generator=generator, dtype=dtype)
    if shape == (count, 1) and draw(st.booleans()):
        values = values[:, 0]
    return kind, scale * torch.randn(shape, generator=generator, dtype=dtype), values


@settings(deadline=None, max_examples=80)
@given(judged())
def test_losses_are_those_of_their_definitions(given: tuple[LossKind, Tensor, Tensor]) -> None:
    found = example_losses(*given)
    assert (found.dtype, found.shape) == (torch.float64, (len(given[2]),))
    assert found.tolist() == pytest.approx(long_losses(*given), rel=1e-11, abs=1e-13)


@settings(deadline=None, max_examples=60)
@given(judged(), st.data())
def test_a_loss_does_not_depend_on_the_examples_beside_it(
    given: tuple[LossKind, Tensor, Tensor], data: st.DataObject
) -> None:
    kind, outputs, targets = given
    whole = example_losses(kind, outputs, targets)
    size = data.draw(st.integers(1, len(targets)))
    parts = zip(outputs.split(size), targets.split(size), strict=True)
    apart = torch.cat([example_losses(kind, output, target) for output, target in parts])
    assert apart.tolist() == pytest.approx(whole.tolist(), rel=1e-15, abs=0)
    order = torch.randperm(len(targets), generator=random(size))
    assert example_losses(kind, outputs[order], targets[order]).tolist() == pytest.approx(
        whole[order].tolist(), rel=1e-15, abs=0
    )


def test_large_outputs_are_taken_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, labels = torch.randn(11, 4, 7, generator=random(0)), torch.randint(0, 7, (11, 4), generator=random(1))
    whole = example_losses("causal_lm", outputs, labels)
    for elements in (1, 60, 28 * 4):
        monkeypatch.setattr(module_under_test, "_ELEMENTS", elements)
        assert torch.equal(example_losses("causal_lm", outputs, labels), whole)


def test_what_is_not_predicted_may_be_anything() -> None:
    outputs = torch.randn(1, 4, 3, generator=random(2))
    labels = torch.tensor([[2, 1, -100, 0]])
    expected = float(example_losses("causal_lm", outputs, labels)[0])
    outputs[0, 1] = math.nan  # would predict the third token, which is ignored
    outputs[0, 3] = math.inf  # would predict a fifth one, which isn't there
    labels[0, 0] = 0  # the first token is predicted by nothing
    assert float(example_losses("causal_lm", outputs, labels)[0]) == expected
    outputs[0, 0, 0] = math.nan
    assert math.isnan(float(example_losses("causal_lm", outputs, labels)[0]))


def test_the_mean_by_predicted_tokens_is_the_mean_over_all_tokens() -> None:
    outputs, labels = torch.randn(6, 5, 4, generator=random(3)), torch.randint(0, 4, (6, 5), generator=random(4))
    labels[torch.rand(6, 5, generator=random(5)) < 0.3] = -100
    losses = np.array(
        [
            _long_nll(outputs[row, at - 1].double().numpy().astype(np.longdouble), int(labels[row, at]))
            for row in range(6)
            for at in range(1, 5)
            if labels[row, at] != -100
        ]
    )
    weights = predicted_tokens(labels)
    assert weights.tolist() == [sum(label != -100 for label in row[1:]) for row in labels.tolist()]
    assert weighted_mean(example_losses("causal_lm", outputs, labels), weights) == pytest.approx(float(losses.mean()))
