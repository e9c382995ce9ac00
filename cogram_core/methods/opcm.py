"""OPCM: sources one after the other, each without what the ones before have already said (orthogonal projection)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cogram_core.methods.contract import Field, MethodParams, TensorMethod
from cogram_core.stopping import stop_point


class Params(MethodParams):
    """Parameters of ``opcm``."""

    alpha: float = Field(
        0.5,
        ge=0,
        le=1,
        description="α: share of the merged change's singular values whose directions are closed to later sources",
    )


def merge(base: Tensor, tensors: Sequence[Tensor], weights: Sequence[float], params: Params) -> Tensor:
    """θ = θ₀ + s·Σₜ wₜ P(Δₜ) with Δₜ = θₜ − θ₀, P of a matrix its part outside of what was merged before it.

    With the singular value decomposition U Σ Vᵀ of the sum so far, P takes from Δₜ all components uᵢ vⱼᵀ with i, j ≤ r,
    where r is the least number of directions that hold the share α of Σ's sum, and all with i = j. What is left is
    orthogonal to the sum so far, and the first source counts whole: the order of the sources matters, by definition. Tensors
    of another number of dimensions than two are added as they are.

    s gives the merged change the mean length of the sources' own, Σ wₜ‖Δₜ‖ / Σ wₜ, so that it doesn't grow with their
    number; where nothing is projected, it never lengthens their sum: changes may cancel there. The weights are divided by
    their mean. The paper takes lengths over all of a network, here each tensor's is its own. Everything is computed on the
    CPU, one way for every device.

    Args:
        base: θ₀, shape (...).
        tensors: n tensors θₜ of that shape, in the recipe's order.
        weights: n positive numbers wₜ.
        params: see ``Params``.

    Returns:
        θ in float64, shape (...).

    Source: Tang et al. 2025, arXiv:2501.09522, projection and adaptive scaling.
    """
    origin = base.cpu().double()
    total = torch.zeros_like(origin)
    lengths = []
    mean = math.fsum(weights) / len(weights)
    for tensor, weight in zip(tensors, weights, strict=True):
        stop_point()
        change = tensor.cpu().double() - origin
        lengths.append(weight * _length(change))
        total += weight / mean * _outside(change, total, params.alpha)
    return (origin + _scale(total, math.fsum(lengths) / math.fsum(weights)) * total).to(base.device)


def _length(change: Tensor) -> float:
    return float(torch.linalg.vector_norm(change))


def _scale(total: Tensor, wanted: float) -> float:
    """What makes the sum as long as it should be; 0 where there is nothing to make longer."""
    length = _length(total)
    if length == 0:
        return 0.0
    return wanted / length if total.ndim == 2 else min(1.0, wanted / length)


def _outside(change: Tensor, merged: Tensor, alpha: float) -> Tensor:
    """P: the part of a change (m, n) outside of the leading directions of what is merged, (m, n), and orthogonal to it."""
    if change.ndim != 2 or not bool(merged.any()):
        return change
    left, values, right = torch.linalg.svd(merged, full_matrices=False)  # (m, k), (k,), (k, n)
    # Directions below rounding are none: any others would do for them as well.
    rank = int((values > max(merged.shape) * torch.finfo(values.dtype).eps * values[0]).sum())
    held = values.cumsum(0)
    leading = min(rank, int((held < alpha * held[-1]).sum()) + (alpha > 0))
    left, right = left[:, :rank], right[:rank]
    taken = left.T @ change @ right.T  # (rank, rank), the components along uᵢ vⱼᵀ
    removed = torch.diag(taken.diagonal())
    removed[:leading, :leading] = taken[:leading, :leading]
    kept: Tensor = change - left @ removed @ right
    return kept


METHOD = TensorMethod(name="opcm", params=Params, merge=merge, needs_base=True)
