"""One layer's least-squares fit to several sources, from the sums that were added up for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cogram_core.mixing import mix, round_shares
from cogram_core.statistics.gram import Sums, coherence
from cogram_core.statistics.solving import Solution, solve_change

TaskWeights = Literal["uniform", "gram_coherence"]


@dataclass(frozen=True)
class Fitted:
    """W (g, f, o) in float64, how it came about, and the mean squared residuals of the weighted average and of W."""

    matrix: Tensor
    shares: tuple[float, ...]
    loss_before: float | None
    loss_after: float | None
    reason: str


def task_shares(weights: Sequence[float], sums: Sequence[Sums], kind: TaskWeights, constant: bool) -> tuple[float, ...]:
    """The sources' weights as shares; ``gram_coherence``: each times its Gram matrix' coherence, where any has some."""
    factors = [coherence(entry.gram, constant) for entry in sums] if kind == "gram_coherence" else [1.0] * len(sums)
    weighed = [weight * factor for weight, factor in zip(weights, factors, strict=True)]
    total = math.fsum(weighed)
    return (
        round_shares([weight / total for weight in weighed])
        if total > 0
        else task_shares(weights, sums, "uniform", constant)
    )


def fit(
    sums: Sequence[Sums],
    matrices: Sequence[Tensor],
    shares: Sequence[float],
    shrink: float,
    ridge: float,
    precision: float,
) -> Fitted:
    """W = W̄ + (Â + μI)⁻¹ Σ aᵢ (Ĝᵢ Dᵢ + XᵢᵀTᵢ/rows) with W̄ = Σ aᵢWᵢ, Dᵢ = Wᵢ − W̄ and Â = Σ aᵢĜᵢ.

    Gᵢ = XᵢᵀXᵢ/rows, Ĝ = α G + (1 − α) diag G. This is (Â + μI)⁻¹ (Σ aᵢ (Ĝᵢ Wᵢ + XᵢᵀTᵢ/rows) + μ W̄): with Tᵢ = Yᵢ − Xᵢ Wᵢ
    and α = 1 the least-squares fit of Xᵢ W to Yᵢ. Written by differences, nothing is lost where sources are alike.

    Args:
        sums: of each source, finished.
        matrices: Wᵢ, float64 (g, f, o).
        shares: aᵢ, which sum to one.
        shrink: α.
        ridge: μ by the mean of Â's diagonal.
        precision: relative error of the sums.
    """
    mean = mix(matrices, shares)
    gram, before = torch.zeros_like(sums[0].gram), 0.0
    residual, pulled = torch.zeros_like(mean), torch.zeros_like(mean)
    for share, entry, matrix in zip(shares, sums, matrices, strict=True):
        apart = matrix - mean
        across = entry.gram @ apart
        before += share * (entry.square + _product(apart, across))
        gram += share * entry.gram
        pulled += share * (shrink * across + (1 - shrink) * entry.gram.diagonal(dim1=1, dim2=2)[:, :, None] * apart)
        residual += share * across
        if entry.cross is not None:
            before += 2 * share * _product(apart, entry.cross)
            residual += share * entry.cross
            pulled += share * entry.cross
    shrunk = shrink * gram + (1 - shrink) * torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    found = solve_change(shrunk, pulled, ridge, precision)
    after = before - 2 * _product(found.change, residual) + _product(found.change, gram @ found.change)
    outputs = mean.shape[0] * mean.shape[2]
    rows = sum(entry.rows for entry in sums)
    return Fitted(
        mean + found.change, tuple(shares), _loss(before, outputs), _loss(after, outputs), _reason(found, rows)
    )


def _product(one: Tensor, other: Tensor) -> float:
    return float((one * other).sum())


def _loss(total: float, outputs: int) -> float | None:
    """A mean squared residual, which rounding may have made a little negative."""
    return max(0.0, total / outputs) if math.isfinite(total) else None


def _reason(found: Solution, rows: int) -> str:
    if rows == 0:
        return "the weighted mean: no row of data arrives"
    how = f"solved on {rows} rows, condition number {found.condition:.1e}, ridge {found.ridge:.1e}"
    return f"{how}; fell back on {found.fallback}" if found.fallback else how
