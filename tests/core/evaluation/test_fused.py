"""The compiled end of a classifier against torch's own operations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cogram_core.evaluation import fused
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.fused import FusedEnd


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random(seed), dtype=torch.float64)


def plainly(hidden: Tensor, last: nn.Linear | None, targets: Tensor) -> Tensor:
    """Losses of rows of Z by torch's softmax."""
    with torch.no_grad():
        logits = hidden if last is None else last(torch.relu(hidden))
    return nn.functional.cross_entropy(logits, targets, reduction="none")


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int, int, int, bool, bool]:
    """Seed, examples, width, classes, candidates, whether a layer follows, and whether it has a bias."""
    numbers = [draw(st.integers(1, most)) for most in (40, 300, 37, 6)]
    return (draw(st.integers(0, 2**30)), *numbers, draw(st.booleans()), draw(st.booleans()))  # type: ignore[return-value]


@settings(deadline=None, max_examples=60)
@given(case=cases(), threads=st.sampled_from([1, 3]))
def test_losses_and_means_are_those_of_full_operations(
    case: tuple[int, int, int, int, int, bool, bool], threads: int
) -> None:
    seed, count, width, classes, candidates, follows, biased = case
    last = nn.Linear(width, classes, bias=biased).double() if follows else None
    output = normal(seed, count, width if follows else classes)
    directions, arriving = normal(seed + 1, 5, output.shape[1]), normal(seed + 2, 5, count)
    levels = normal(seed + 3, candidates, count)
    rows = torch.randint(5, (candidates,), generator=random(seed))
    levels[:, ::3] = arriving[rows][:, ::3]  # these examples don't change
    targets = torch.randint(output.shape[1] if last is None else classes, (count,), generator=random(seed + 4))
    weights = torch.rand(count, generator=random(seed + 5), dtype=torch.float64) + 0.1
    chain = [] if last is None else [nn.ReLU(), last]
    end = FusedEnd.of(chain, directions, output, Dataset(output, targets, weights))
    assert end is not None
    base = plainly(output, last, targets)
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        picks = torch.arange(candidates).flip(0)
        losses, means = end.losses(output, levels.flip(0), picks, arriving, rows, base)
    finally:
        torch.set_num_threads(kept)
    for k, row in enumerate(rows.tolist()):
        moved = output + (levels[k] - arriving[row])[:, None] * directions[row]
        expected = plainly(moved, last, targets)
        torch.testing.assert_close(losses[k], expected, rtol=1e-12, atol=1e-13)
        assert means[k] == pytest.approx(float((weights * expected).sum() / weights.sum()), rel=1e-12, abs=1e-13)


def one_loss(logits: list[float], target: int) -> float:
    """The loss of logits that one candidate makes of zeros."""
    output, directions = torch.zeros(1, len(logits), dtype=torch.float64), torch.tensor([logits], dtype=torch.float64)
    end = FusedEnd.of([], directions, output, Dataset(output, torch.tensor([target])))
    assert end is not None
    ones, zeros = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    losses, _ = end.losses(output, ones, None, zeros, torch.tensor([0]), torch.zeros(1, dtype=torch.float64))
    return float(losses[0, 0])


def test_tiny_losses_keep_their_digits() -> None:
    assert one_loss([30.0, 0.0, -1.0], 0) == pytest.approx(math.exp(-30) + math.exp(-31), rel=1e-14)


def test_losses_beyond_the_range_of_the_exponential_are_finite() -> None:
    assert one_loss([0.0, 5000.0, 4000.0], 0) == pytest.approx(5000.0)
    assert one_loss([0.0, 800.0, 800.0], 0) == pytest.approx(800.0 + math.log(2), rel=1e-14)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0.0, math.inf], math.inf),
        ([-math.inf, 0.0], math.inf),
        ([math.nan, 0.0], math.nan),
        ([0.0, math.nan], math.nan),
    ],
)
def test_infinity_and_nan_are_told(logits: list[float], expected: float) -> None:
    assert one_loss(logits, 0) == pytest.approx(expected, nan_ok=True)


def test_a_single_class_costs_nothing() -> None:
    assert one_loss([3.0], 0) == 0.0


def test_nan_in_a_hidden_value_reaches_the_loss() -> None:
    last = nn.Linear(20, 3).double()
    output = normal(1, 4, 20)
    output[2, 19] = math.nan
    data = Dataset(output, torch.tensor([0, 1, 2, 0]))
    end = FusedEnd.of([nn.ReLU(), last], normal(2, 1, 20), output, data)
    assert end is not None
    levels, arriving = torch.ones(1, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    losses, means = end.losses(output, levels, None, arriving, torch.tensor([0]), torch.zeros(4, dtype=torch.float64))
    assert losses.isnan().tolist() == [[False, False, True, False]]
    assert math.isnan(means[0])


@pytest.mark.parametrize(
    "chain",
    [
        None,
        [nn.Tanh(), nn.Linear(6, 3)],
        [nn.ReLU()],
        [nn.ReLU(), nn.Linear(6, 300)],
        [nn.ReLU(), nn.Linear(6, 3), nn.ReLU()],
    ],
)
def test_other_ends_are_left_to_torch(chain: list[nn.Module] | None) -> None:
    output = normal(0, 4, 6)
    assert FusedEnd.of(chain, normal(1, 2, 6), output, Dataset(output, torch.tensor([0, 1, 2, 0]))) is None


def test_without_the_compiled_library_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "library", lambda: None)
    output = normal(0, 4, 6)
    assert FusedEnd.of([], normal(1, 2, 6), output, Dataset(output, torch.tensor([0, 1, 2, 0]))) is None


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_VERSION", -1)
    assert fused.library.__wrapped__() is None
