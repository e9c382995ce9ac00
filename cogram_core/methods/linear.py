"""Linear: the weighted mean of the sources."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from cogram_core.methods.contract import Field, MethodParams, TensorMethod
from cogram_core.mixing import keep_common, mix


class Params(MethodParams):
    """Parameters of ``linear``."""

    normalize: bool = Field(True, description="divide by the sum of the sources' weights")


def merge(tensors: Sequence[Tensor], weights: Sequence[float], params: Params) -> Tensor:
    """θ = Σ wᵢ θᵢ / Σ wᵢ; without ``normalize`` the sum alone.

    Args:
        tensors: n tensors θᵢ of one shape (...).
        weights: n positive numbers wᵢ.
        params: see ``Params``.

    Returns:
        θ in float64, shape (...).

    Source: model soups, Wortsman et al. 2022, arXiv:2203.05482, uniform soup with weights.
    """
    total = mix(tensors, weights)
    if not params.normalize:
        return total
    # One division at the end: n equal tensors give themselves, where n products with a rounded 1/n need not.
    return keep_common(tensors, total / math.fsum(weights))


METHOD = TensorMethod(name="linear", params=Params, merge=merge)
