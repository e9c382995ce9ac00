"""Regularised least squares from sums of products, with a way out where they don't determine the solution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_STEPS = 12  # of the estimate of a condition number
_TINY = 1e-300


@dataclass(frozen=True)
class Solution:
    """What was found: ``change`` (g, f, o) in float64; of all groups the largest ``ridge`` and estimated ``condition``.

    ``fallback`` says in words what was done instead where the equations could not be solved as they are; empty: nothing.
    """

    change: Tensor
    ridge: float
    condition: float
    fallback: str = ""


def solve_change(gram: Tensor, residual: Tensor, ridge: float, precision: float) -> Solution:
    """Δ = (A + μI)⁻¹ R for every group, μ being ``ridge`` times the mean of A's diagonal.

    With R = B − A W̄ this is W̄ + Δ = (A + μI)⁻¹ (B + μ W̄): least squares with a ridge that pulls towards W̄ and not towards
    zero, so that directions which no data determine keep the mean.

    Cholesky in float64. Where that fails, or the condition number is so large that errors of ``precision`` in A decide on
    the result, the pseudo-inverse without the directions whose eigenvalues such errors reach.

    Args:
        gram: A, float64 (g, f, f), symmetric, not negative.
        residual: R, float64 (g, f, o).
        ridge: relative.
        precision: relative error of A's entries: the epsilon of the numbers that it is made of.
    """
    if not (bool(torch.isfinite(gram).all()) and bool(torch.isfinite(residual).all())):
        return Solution(torch.zeros_like(residual), 0.0, float("inf"), "the mean: statistics that overflow")
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    # A group without any input has R = 0: any ridge gives it the mean.
    added = torch.where(mean > 0, ridge * mean, torch.ones_like(mean))
    raised = gram + torch.diag_embed(added[:, None].expand(-1, gram.shape[1]))
    factor, failed = torch.linalg.cholesky_ex(raised)
    solved = failed == 0
    condition = torch.where(solved, _condition(raised, factor, solved), torch.full_like(mean, float("inf")))
    solved &= condition * precision < 1
    change = torch.cholesky_solve(residual, torch.where(solved[:, None, None], factor, _eye(factor)))
    fallback = ""
    if not bool(solved.all()):
        places = torch.nonzero(~solved)[:, 0]
        change[places] = _pseudo_inverse(raised[places], precision) @ residual[places]
        fallback = "the pseudo-inverse" + (f" in {len(places)} of {len(solved)} groups" if len(solved) > 1 else "")
    if not bool(torch.isfinite(change.float()).all()):
        change, fallback = torch.zeros_like(change), "the mean: a solution that overflows"
    return Solution(change, float(torch.where(mean > 0, added, 0.0).max()), float(condition.max()), fallback)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[1], dtype=like.dtype, device=like.device).expand_as(like)


def _condition(matrix: Tensor, factor: Tensor, solved: Tensor) -> Tensor:
    """Estimates λ_max / λ_min from below, (g,), by powers of the matrix and of its inverse."""
    factor = torch.where(solved[:, None, None], factor, _eye(factor))
    features = matrix.shape[1]
    start = torch.cos(torch.arange(features, dtype=matrix.dtype, device=matrix.device) * 1.7 + 0.3)
    top = bottom = (start / start.norm()).expand(len(matrix), features)[:, :, None]
    largest = inverse = torch.ones(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for _ in range(_STEPS):
        top, bottom = matrix @ top, torch.cholesky_solve(bottom, factor)
        largest, inverse = top.norm(dim=(1, 2)), bottom.norm(dim=(1, 2))
        top = top / largest.clamp(min=_TINY)[:, None, None]
        bottom = bottom / inverse.clamp(min=_TINY)[:, None, None]
    return largest * inverse


def _pseudo_inverse(matrix: Tensor, precision: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > values[:, -1:] * precision * matrix.shape[1]
    inverse = torch.where(kept, 1 / torch.where(kept, values, torch.ones_like(values)), torch.zeros_like(values))
    found: Tensor = (vectors * inverse[:, None]) @ vectors.transpose(1, 2)
    return found
