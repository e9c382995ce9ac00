from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cogram_core.methods.opcm import Params, merge
from tests.core.factories import random

some = settings(deadline=None, max_examples=30)
Matrix = NDArray[np.float64]


def draw(seed: int, shape: tuple[int, ...], count: int) -> list[Tensor]:
    generator = random(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def naive(base: Matrix, sources: list[Matrix], weights: list[float], alpha: float) -> Matrix:
    """The paper's formulas with complete bases, component by component."""
    changes = [source - base for source in sources]
    shares = [weight / np.mean(weights) for weight in weights]
    total = shares[0] * changes[0]
    for share, change in zip(shares[1:], changes[1:], strict=True):
        left, values, right = np.linalg.svd(total)
        components = left.T @ change @ right.T
        leading = 0
        while values[:leading].sum() < alpha * values.sum() * (1 - 1e-12):
            leading += 1
        kept = np.zeros_like(change)
        for i in range(len(left)):
            for j in range(len(right)):
                if i != j and not (i < leading and j < leading):
                    kept += components[i, j] * np.outer(left[:, i], right[j])
        total = total + share * kept
    wanted = sum(w * np.linalg.norm(c) for w, c in zip(weights, changes, strict=True)) / sum(weights)
    return np.asarray(base + wanted / np.linalg.norm(total) * total)


@some
@given(
    st.integers(0, 2**31),
    st.sampled_from([(3, 3), (2, 5), (5, 2), (1, 4), (4, 1)]),
    st.lists(st.floats(0.2, 4), min_size=2, max_size=4),
    st.floats(0, 1),
)
def test_matrices_follow_the_paper_s_formulas(
    seed: int, shape: tuple[int, int], weights: list[float], alpha: float
) -> None:
    base, *sources = draw(seed, shape, len(weights) + 1)
    found = merge(base, sources, weights, Params(alpha=alpha))
    expected = naive(base.double().numpy(), [source.double().numpy() for source in sources], weights, alpha)
    assert found.dtype == torch.float64
    assert np.allclose(found.numpy(), expected, rtol=0, atol=1e-10)


@some
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_what_a_later_source_adds_is_orthogonal_to_what_was_there(seed: int, alpha: float) -> None:
    base, first, second = draw(seed, (4, 6), 3)
    change, other = first.double() - base.double(), second.double() - base.double()
    merged = merge(base, [first, second], [1.0, 1.0], Params(alpha=alpha)) - base.double()
    length = (change.norm() + other.norm()) / 2
    assert float(merged.norm()) == pytest.approx(float(length), rel=1e-12)
    # merged = s·(change + added): taking the part along ``change`` out of it leaves s·added.
    scale = float((merged * change).sum() / change.square().sum())
    added = merged / scale - change
    assert abs(float((added * change).sum())) < 1e-9 * float(length) ** 2
    left, values, right = np.linalg.svd(change.numpy())
    leading = next(k for k in range(5) if values[:k].sum() >= alpha * values.sum() * (1 - 1e-12))
    assert np.abs(left.T[:leading] @ added.numpy() @ right[:leading].T).max(initial=0) < 1e-9 * float(length)


@some
@given(st.integers(0, 2**31), st.sampled_from([(), (5,), (2, 3, 4), (2, 1, 3, 3), (0,), (0, 3)]))
def test_other_tensors_are_added_and_never_lengthened(seed: int, shape: tuple[int, ...]) -> None:
    base, *sources = draw(seed, shape, 4)
    weights = [1.0, 0.5, 2.0]
    found = merge(base, sources, weights, Params())
    changes = [source.double() - base.double() for source in sources]
    total = sum((w / (3.5 / 3)) * change for w, change in zip(weights, changes, strict=True))
    assert isinstance(total, Tensor)
    wanted = sum(w * float(change.norm()) for w, change in zip(weights, changes, strict=True)) / 3.5
    length = float(total.norm())
    expected = base.double() + (min(1.0, wanted / length) if length else 0.0) * total
    assert torch.allclose(found, expected, rtol=0, atol=1e-13)


def test_changes_that_cancel_are_not_blown_up() -> None:
    base, change = torch.zeros(3), torch.tensor([1.0, -2.0, 0.5])
    found = merge(base, [change, -change * (1 - 2**-10)], [1.0, 1.0], Params())
    assert torch.allclose(found, change.double() * 2**-10, atol=1e-7)


@pytest.mark.parametrize("shape", [(3, 5), (4,)])
def test_a_source_that_says_the_same_again_adds_nothing(shape: tuple[int, ...]) -> None:
    base, source = draw(3, shape, 2)
    for count in (2, 3):
        found = merge(base, [source] * count, [1.0] * count, Params())
        assert torch.allclose(found, source.double(), rtol=0, atol=1e-13)


def test_a_source_equal_to_the_base_only_shortens() -> None:
    base, source = draw(4, (3, 5), 2)
    expected = base.double() + (source.double() - base.double()) / 2
    for sources in ([base, source], [source, base]):
        assert torch.allclose(merge(base, sources, [1.0, 1.0], Params()), expected, rtol=0, atol=1e-13)
    assert torch.equal(merge(base, [base, base], [1.0, 1.0], Params()), base.double())


def test_the_order_of_the_sources_matters_and_their_common_weight_does_not() -> None:
    base, one, other = draw(5, (4, 4), 3)
    found = merge(base, [one, other], [1.0, 1.0], Params())
    assert torch.equal(found, merge(base, [one, other], [4.0, 4.0], Params()))
    assert not torch.allclose(found, merge(base, [other, one], [1.0, 1.0], Params()), atol=1e-2)


def test_rows_and_columns_that_nothing_changes_stay_those_of_the_base() -> None:
    """Dead units: of a source's change of rank one, and of rows that no source has touched."""
    base = draw(6, (4, 5), 1)[0]
    row, column = torch.randn(5, generator=random(7)), torch.tensor([1.0, 0.0, -2.0, 0.0])
    sources = [base + torch.outer(column, row), base + torch.outer(column.flip(0), row) * 0, base.clone()]
    sources[1][2, 3] += 1.5
    found = merge(base, sources, [1.0, 1.0, 1.0], Params(alpha=1.0))
    assert torch.isfinite(found).all()
    assert torch.equal(found[1], base[1].double())
    assert torch.equal(found[3], base[3].double())
