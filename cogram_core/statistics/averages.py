"""Averages that statistics of data decide on: rows of embeddings, and the moments of what arrives at a normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def row_shares(weights: Sequence[float], counts: Sequence[Tensor]) -> list[Tensor]:
    """Each source's share of every row, float64 (rows,), which sum to one: its weight times how often its data has the row.

    Rows that no data has are shared by the weights alone.

    Args:
        weights: positive.
        counts: of each source's data, relative to all of its rows, float64 (rows,).
    """
    weighed = [weight * count for weight, count in zip(weights, counts, strict=True)]
    total = torch.stack(weighed).sum(0)
    seen = total > 0
    usual = math.fsum(weights)
    return [
        torch.where(seen, each / torch.where(seen, total, torch.ones_like(total)), weight / usual)
        for weight, each in zip(weights, weighed, strict=True)
    ]


def pooled_moments(arrived: Sequence[Sequence[Tensor]], shares: Sequence[float]) -> list[Tensor] | None:
    """Mean and unbiased variance of each channel over all sources' data, float64 (d,) each; None where there is none.

    The variance is Σ aᵢ (varᵢ + (meanᵢ − mean)²), so that each source counts by its share aᵢ, however much data it has.

    Args:
        arrived: of each source, batches (N, d, ...).
        shares: aᵢ; sources without data are left out.
    """
    known = [(share, _moments(batches)) for share, batches in zip(shares, arrived, strict=True) if batches]
    total = math.fsum(share for share, _ in known)
    if total <= 0:
        return None
    zero = torch.zeros_like(known[0][1][0])
    mean = sum((share / total * found[0] for share, found in known), zero)
    variance = sum((share / total * (found[1] + (found[0] - mean).square()) for share, found in known), zero)
    return [mean, variance]


def _moments(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance."""
    rows = [batch.transpose(0, 1).flatten(1) for batch in batches]  # (d, R)
    count = sum(entry.shape[1] for entry in rows)
    zero = torch.zeros(rows[0].shape[0], dtype=torch.float64, device=rows[0].device)
    mean = sum((entry.double().sum(1) for entry in rows), zero) / count
    square = sum(((entry.double() - mean[:, None]).square().sum(1) for entry in rows), zero)
    return mean, square / max(1, count - 1)
