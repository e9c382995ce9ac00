from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogram_core.statistics.gram import Sums
from cogram_core.statistics.solving import solve_change
from tests.core.factories import random


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), features=st.integers(1, 9), groups=st.integers(1, 3), rows=st.integers(1, 30))
def test_the_change_is_the_solution_of_the_raised_equations(seed: int, features: int, groups: int, rows: int) -> None:
    drawn = torch.randn(groups, rows, features, generator=random(seed), dtype=torch.float64)
    gram = drawn.transpose(1, 2) @ drawn
    residual = torch.randn(groups, features, 4, generator=random(seed + 1), dtype=torch.float64)
    found = solve_change(gram, residual, 1e-3, 1e-16)
    conditions = []
    for group in range(groups):
        matrix = gram[group].numpy()
        raised = matrix + 1e-3 * np.trace(matrix) / features * np.eye(features)
        exact = np.linalg.solve(raised, residual[group].numpy())
        assert np.allclose(found.change[group].numpy(), exact, rtol=1e-8, atol=1e-10 * np.abs(exact).max())
        conditions.append(np.linalg.cond(raised))
    assert found.fallback == ""
    assert 0.2 * max(conditions) <= found.condition <= 1.001 * max(conditions)


def test_what_no_data_determines_is_left_alone() -> None:
    rows = torch.randn(1, 40, 5, generator=random(1), dtype=torch.float64)
    rows[:, :, 2] = 0
    rows[:, :, 4] = rows[:, :, 3]
    wanted = torch.randn(1, 40, 3, generator=random(2), dtype=torch.float64)
    gram, residual = rows.transpose(1, 2) @ rows, rows.transpose(1, 2) @ wanted
    found = solve_change(gram, residual, 0.0, 1e-16)
    assert found.fallback == "the pseudo-inverse"
    least = np.linalg.pinv(rows[0].numpy()) @ wanted[0].numpy()
    assert np.allclose(found.change[0].numpy(), least, atol=1e-10)
    assert float(found.change[0, 2].abs().max()) < 1e-12


def test_statistics_that_overflow_change_nothing() -> None:
    gram = torch.eye(3, dtype=torch.float64)[None].clone()
    gram[0, 1, 1] = float("inf")
    found = solve_change(gram, torch.ones(1, 3, 2, dtype=torch.float64), 1e-4, 1e-7)
    assert "overflow" in found.fallback
    assert not found.change.any()


@pytest.mark.parametrize("constant", [False, True])
def test_sums_are_those_of_all_rows_with_a_column_of_ones(constant: bool) -> None:
    generator = random(3)
    batches = [torch.randn(2, count, 600, generator=generator) for count in (7, 30)]
    beyond = [torch.randn(2, count, 3, generator=generator) for count in (7, 30)]
    width = 600 + constant
    sums = Sums.zero(torch.zeros(2, width, 3), constant, crossed=True)
    for rows, more in zip(batches, beyond, strict=True):
        sums.add(rows, more)
    sums.finish()
    rows, more = torch.cat(batches, 1).double(), torch.cat(beyond, 1).double()
    if constant:
        rows = torch.cat([rows, torch.ones(2, 37, 1, dtype=torch.float64)], 2)
    assert torch.allclose(sums.gram, rows.transpose(1, 2) @ rows / 37, atol=1e-5)
    assert torch.equal(sums.gram, sums.gram.transpose(1, 2))
    assert sums.cross is not None
    assert torch.allclose(sums.cross, rows.transpose(1, 2) @ more / 37, atol=1e-5)
    assert sums.square == pytest.approx(float(more.square().sum()) / 37, rel=1e-5)
