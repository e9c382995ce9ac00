"""Losses that keep their digits: decisions are taken on differences, and rounding must not decide."""

from __future__ import annotations

import torch
from torch import Tensor


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(z)_t of each example, in float64.

    Written against the target's logit, log(1 + Σ_{k≠t} exp(z_k − z_t)), with log1p, so that a loss of 1e-12 is not
    rounded to zero as it would be from log-sum-exp minus z_t.

    Args:
        logits: z, shape (N, C).
        targets: t, int64, shape (N,), in [0, C).

    Returns:
        float64, shape (N,); infinity where the target has no probability, NaN where a logit is NaN.
    """
    wide = logits.double()
    differences = wide - wide.gather(1, targets[:, None])  # (N, C)
    others = differences.scatter(1, targets[:, None], -torch.inf)
    peak = others.amax(dim=1).clamp(min=0.0, max=torch.finfo(torch.float64).max)  # (N,)
    # Finite, so that an infinite difference gives infinity and not infinity less infinity.
    # exp(−peak) is the target's own term; with peak = 0 the sum is log1p of the others, without loss of digits.
    rest = torch.exp(others - peak[:, None]).sum(dim=1)
    return peak + torch.log1p(rest + torch.expm1(-peak))


def weighted_mean(losses: Tensor, weights: Tensor | None) -> float:
    """Σ w·l / Σ w in float64; the plain mean without weights. Losses and weights have shape (N,)."""
    if weights is None:
        return float(losses.mean())
    return float((losses * weights).sum() / weights.sum())
