from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogram_core.methods.linear import METHOD, Params, merge
from tests.core.factories import random

some = settings(deadline=None, max_examples=40)
weights_of = st.lists(st.floats(0.01, 100), min_size=2, max_size=5)
shapes = st.sampled_from([(), (0,), (1,), (3, 2), (2, 1, 4)])


@some
@given(st.integers(0, 2**31), weights_of, shapes)
def test_the_result_is_the_weighted_mean(seed: int, weights: list[float], shape: tuple[int, ...]) -> None:
    tensors = [torch.randn(shape, generator=random(seed + place)) for place in range(len(weights))]
    merged = merge(tensors, weights, Params())
    assert merged.dtype == torch.float64
    assert merged.shape == shape
    total = sum(Fraction(weight) for weight in weights)
    rows = zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True)
    exact = [sum(Fraction(w) * Fraction(x) for w, x in zip(weights, row, strict=True)) / total for row in rows]
    assert merged.flatten().tolist() == pytest.approx([float(value) for value in exact], rel=1e-13, abs=1e-15)


@some
@given(st.integers(0, 2**31), weights_of)
def test_without_normalising_it_is_the_weighted_sum(seed: int, weights: list[float]) -> None:
    tensors = [torch.randn(4, generator=random(seed + place)) for place in range(len(weights))]
    total = sum(weights)
    scaled = merge(tensors, weights, Params()) * total
    assert torch.allclose(merge(tensors, weights, Params(normalize=False)), scaled, rtol=1e-12, atol=1e-12)


@some
@given(st.integers(0, 2**31), weights_of, st.sampled_from([torch.float32, torch.float64]))
def test_equal_tensors_give_themselves_whatever_their_weights(
    seed: int, weights: list[float], dtype: torch.dtype
) -> None:
    tensor = torch.randn(50, generator=random(seed), dtype=dtype) * 10 ** torch.randint(-20, 20, (50,)).to(dtype)
    kept = tensor.clone()
    assert torch.equal(merge([tensor] * len(weights), weights, Params()).to(dtype), kept)
    assert torch.equal(tensor, kept)


def test_values_worked_out_by_hand() -> None:
    tensors = [torch.tensor([1.0, -2.0]), torch.tensor([5.0, 2.0])]
    assert merge(tensors, [3.0, 1.0], Params()).tolist() == [2.0, -1.0]
    assert merge(tensors, [3.0, 1.0], Params(normalize=False)).tolist() == [8.0, -4.0]
    assert merge(tensors, [1.0, 1.0], Params()).tolist() == [3.0, 0.0]


def test_it_needs_neither_data_nor_a_network() -> None:
    assert METHOD.per_tensor
    assert not METHOD.needs_data
