from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogram_core.mixing import round_shares, softmax_shares

UNIT = 2.0**-16

losses = st.lists(st.floats(0, 50), min_size=2, max_size=5)
steepness = st.floats(0, 200)


@settings(deadline=None)
@given(losses, steepness)
def test_shares_are_multiples_of_the_unit_that_sum_to_one(values: list[float], slope: float) -> None:
    shares = softmax_shares(values, slope)
    assert sum(round(share / UNIT) for share in shares) == 65536
    assert all(share / UNIT == round(share / UNIT) and 0 <= share <= 1 for share in shares)


@settings(deadline=None)
@given(losses, steepness)
def test_shares_are_within_one_unit_of_the_softmax(values: list[float], slope: float) -> None:
    logits = -slope * np.array(values, dtype=np.longdouble)
    weights = np.exp(logits - logits.max())
    exact = weights / weights.sum()
    assert np.abs(np.array(softmax_shares(values, slope)) - exact).max() <= UNIT * (1 + 1e-9)


@settings(deadline=None)
@given(st.floats(0, 20), st.floats(0, 20), steepness)
def test_two_sources_share_by_the_sigmoid_of_their_difference(a: float, b: float, slope: float) -> None:
    x = slope * (b - a)
    sigmoid = 1 / (1 + math.exp(-x)) if x > -700 else 0.0
    assert softmax_shares([a, b], slope)[0] == pytest.approx(sigmoid, abs=UNIT / 2 + 1e-12)


@settings(deadline=None)
@given(st.floats(0, 20), st.floats(0, 20), steepness)
def test_swapping_two_sources_swaps_their_shares(a: float, b: float, slope: float) -> None:
    assert softmax_shares([a, b], slope) == softmax_shares([b, a], slope)[::-1]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_steepness_of_zero_gives_equal_shares(count: int) -> None:
    shares = softmax_shares([0.1 * place for place in range(count)], 0.0)
    assert max(abs(share - 1 / count) for share in shares) <= UNIT


def test_a_large_steepness_takes_the_better_source_alone() -> None:
    assert softmax_shares([0.3, 0.2, 0.4], 1e9) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("slope", [0.0, 5.5, 1e300])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_loss_that_is_not_finite_gets_nothing(bad: float, place: int, slope: float) -> None:
    values = [0.5, 0.5]
    values.insert(place, bad)
    shares = softmax_shares(values, slope)
    assert shares[place] == 0.0
    assert [share for at, share in enumerate(shares) if at != place] == [0.5, 0.5]


def test_no_finite_loss_at_all_gives_nobody_anything() -> None:
    assert softmax_shares([math.inf, math.nan], 5.5) == (0.0, 0.0)


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=9), st.integers(1, 20))
def test_rounding_moves_no_share_by_more_than_a_unit(weights: list[float], bits: int) -> None:
    shares = [weight / math.fsum(weights) for weight in weights]
    rounded = round_shares(shares, bits)
    assert math.fsum(rounded) == 1.0
    assert max(abs(a - b) for a, b in zip(shares, rounded, strict=True)) <= 2.0**-bits * (1 + 1e-9)
