from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogram_core.evaluation.losses import cross_entropy, weighted_mean


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
