"""Linear: the weighted mean of the sources."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cogram_core.methods.contract import Field, MethodParams, TensorMethod
from cogram_core.mixing import weighted_mean, weighted_sum


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
    return (weighted_mean if params.normalize else weighted_sum)(tensors, weights)


METHOD = TensorMethod(name="linear", params=Params, merge=merge)
