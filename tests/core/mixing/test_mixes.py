from __future__ import annotations

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cogram_core.mixing import (
    elementwise_bounds,
    mean_shares,
    mix,
    mix_elementwise,
    pack_shares,
    round_shares,
    step_towards,
    unpack_shares,
    weighted_mean,
    weighted_sum,
)

any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
some = settings(deadline=None, max_examples=60)


@st.composite
def shares_of(draw: st.DrawFn, count: int) -> tuple[float, ...]:
    weights = draw(st.lists(st.floats(0, 1), min_size=count, max_size=count))
    total = sum(weights)
    return round_shares([weight / total for weight in weights] if total > 1e-9 else [1.0] + [0.0] * (count - 1))


def bits(tensor: Tensor) -> list[int]:
    kind = {torch.float32: torch.int32, torch.float64: torch.int64}[tensor.dtype]
    result: list[int] = tensor.contiguous().view(kind).tolist()
    return result


@some
@given(st.data(), st.lists(any_float32, min_size=1, max_size=8), st.integers(2, 5))
def test_a_mix_of_equal_float32_values_is_that_value_bit_for_bit(
    data: st.DataObject, values: list[float], count: int
) -> None:
    tensor = torch.tensor(values)
    assert bits(mix([tensor] * count, data.draw(shares_of(count))).float()) == bits(tensor)


@some
@given(st.lists(any_float32, min_size=1, max_size=8), st.integers(2, 5), st.integers(0, 2**31))
def test_an_elementwise_mix_of_equal_float32_values_is_that_value_bit_for_bit(
    values: list[float], count: int, seed: int
) -> None:
    tensor = torch.tensor(values)
    generator = torch.Generator().manual_seed(seed)
    bounds = elementwise_bounds([torch.rand(tensor.shape, generator=generator) + 1e-9 for _ in range(count)])
    assert bits(mix_elementwise([tensor] * count, bounds).float()) == bits(tensor)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_equal_float64_values_stay_themselves_where_their_mix_alone_would_not(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    value = torch.randn(500, generator=generator, dtype=torch.float64)
    other = value + 1.0
    shares = round_shares(np.random.default_rng(count).dirichlet([1.0] * count).tolist())
    assert not torch.equal(weighted_sum([value] * count, shares), value)
    assert torch.equal(mix([value] * count, shares), value)
    assert torch.equal(weighted_mean([value] * count, [0.1 + share for share in shares]), value)
    bounds = elementwise_bounds([torch.rand(500, generator=generator, dtype=torch.float64) for _ in range(count)])
    assert torch.equal(mix_elementwise([value] * count, bounds), value)
    assert torch.equal(mix([value, other], [0.5, 0.5]), weighted_sum([value, other], [0.5, 0.5]))


@some
@given(st.data(), st.lists(st.floats(0.015625, 64.0, width=32), min_size=2, max_size=4), st.lists(st.booleans()))
def test_a_mix_is_exact_in_float64_and_so_the_same_in_every_order(
    data: st.DataObject, values: list[float], signs: list[bool]
) -> None:
    signed = [-value if sign else value for value, sign in zip(values, signs + [False] * 4, strict=False)]
    shares = data.draw(shares_of(len(values)))
    exact = sum((Fraction(value) * Fraction(share) for value, share in zip(signed, shares, strict=True)), Fraction(0))
    for order in permutations(range(len(values))):
        total = mix([torch.tensor(signed[place]) for place in order], [shares[place] for place in order])
        assert Fraction(float(total)) == exact


@some
@given(st.data(), st.integers(2, 4))
def test_a_mix_lies_within_the_range_of_its_values(data: st.DataObject, count: int) -> None:
    values = data.draw(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=count, max_size=count))
    mixed = float(mix([torch.tensor(value) for value in values], data.draw(shares_of(count))).float())
    assert min(values) <= mixed <= max(values)


def test_a_full_step_is_the_target_and_a_half_step_lies_half_way() -> None:
    current, target = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 6.0], dtype=torch.float64)
    assert torch.equal(step_towards(current, target, 1.0), target)
    assert torch.equal(step_towards(current, target, 0.5), torch.tensor([2.0, 2.0], dtype=torch.float64))
    assert torch.equal(step_towards(current, current.double(), 0.25), current.double())


@some
@given(st.integers(0, 2**31), st.integers(2, 5), st.sampled_from([(), (0,), (7,), (2, 3), (2, 1, 3)]))
def test_elementwise_shares_are_near_their_weights_and_survive_packing(
    seed: int, count: int, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [10 ** (torch.rand(shape, generator=generator, dtype=torch.float64) * 12 - 6) for _ in range(count)]
    bounds = elementwise_bounds(weights)
    assert bounds.shape == (count - 1, *shape)
    assert torch.equal(unpack_shares(pack_shares(bounds), shape, count), bounds)
    edges = torch.cat([torch.zeros(1, *shape), bounds, torch.full((1, *shape), 2**15)])
    shares = (edges[1:] - edges[:-1]) / 2**15
    stacked = torch.stack(weights)
    if shares.numel():
        assert float((shares - stacked / stacked.sum(0)).abs().max()) <= 2.0**-15 * (1 + 1e-9)
        assert float(shares.min()) >= 0
        assert mean_shares(bounds) == pytest.approx([float(share.double().mean()) for share in shares], abs=1e-12)
    else:
        assert mean_shares(bounds) == (1 / count,) * count


def test_an_elementwise_mix_takes_each_element_by_its_own_shares() -> None:
    bounds = elementwise_bounds([torch.tensor([1.0, 3.0, 0.0]), torch.tensor([1.0, 1.0, 5.0])])
    mixed = mix_elementwise([torch.tensor([2.0, 4.0, 9.0]), torch.tensor([4.0, 8.0, -1.0])], bounds)
    assert mixed.tolist() == [3.0, 5.0, -1.0]


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0" * 10, b"\0" * 24])
def test_packed_shares_of_another_length_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="bytes of shares"):
        unpack_shares(payload, (2, 3), 2)


@pytest.mark.parametrize("bounds", [[[3, 2], [2, 3]], [[0, 0], [0, 2**15 + 1]]], ids=["falling", "past one"])
def test_packed_shares_that_are_negative_are_refused(bounds: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="a share is negative"):
        unpack_shares(pack_shares(torch.tensor(bounds)), (2,), 3)
