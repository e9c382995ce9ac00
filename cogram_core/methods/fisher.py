"""Fisher merging: each parameter is averaged by how much each source's predictions depend on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from cogram_core.methods.contract import Field, MethodParams, NetworkMethod, Source, StageContext
from cogram_core.mixing import elementwise_bounds, mean_shares, mix_elementwise, pack_shares
from cogram_core.statistics.fisher import diagonal_fisher
from cogram_core.statistics.fisher_directions import resolved
from cogram_core.stopping import stop_point

_RELATIVE_EPSILON = 1e-10


class Params(MethodParams):
    """Parameters of ``fisher``."""

    examples: int = Field(256, ge=1, description="examples a source, drawn evenly over its data")
    estimator: Literal["auto", "exact", "sampled", "empirical"] = Field(
        "auto",
        description="a gradient for every class or value, for one drawn from the prediction, or for the label; "
        "auto: exact up to 32, sampled above and for token data",
    )
    normalize: bool = Field(False, description="divide each source's Fisher by its norm, so that none dominates")


def run(context: StageContext, params: Params) -> None:
    """θ = Σ cᵢ (Fᵢ + ε) θᵢ / Σ cᵢ (Fᵢ + ε), parameter by parameter.

    Fᵢ is source i's diagonal Fisher information on its own data, else on the evaluation data, see ``diagonal_fisher``;
    cᵢ its weight; ε is 1e-10 of the largest entry, so that a parameter that no source cares about gets the weighted mean.
    The shares are rounded to multiples of 2⁻¹⁵ and stand in the trace, so that a replay needs no data. Statistics of
    normalisation layers have no gradient and get the weighted mean, as does a tensor whose Fisher information overflows.

    Source: Matena & Raffel 2022, arXiv:2111.09832, eq. 4 and 5.
    """
    if context.restore(len(context.network.names)) is None:
        merge_by_fisher(context, params, context.network.names, context.progress)
    context.milestone("merged")


def merge_by_fisher(
    context: StageContext, params: Params, names: Sequence[str], told: Callable[[int, int], None] = lambda *_: None
) -> None:
    """Merges some tensors, as ``run`` does all; the others are left as they are in some source.

    ``told`` is given how many sources are done, and of how many.
    """
    fishers = []
    for place, source in enumerate(context.sources):
        found = _source_fisher(context, source, params)
        fishers.append({name: value for name, value in found.items() if name in names})
        told(place + 1, len(context.sources))
    largest = max((float(entry.max()) for fisher in fishers for entry in fisher.values()), default=0.0)
    epsilon = _RELATIVE_EPSILON * largest or 1.0
    reason = f"shares by Fisher information{_how(context, params)}"
    for name in names:
        stop_point()
        _merge_tensor(context, name, [fisher.get(name) for fisher in fishers], epsilon, reason)


def _how(context: StageContext, params: Params) -> str:
    """What the trace says of estimators other than the exact one."""
    losses = {(source.data or context.evaluation_data()).loss for source in context.sources}
    found = {resolved(params.estimator, loss, context.network.output_shape) for loss in losses}
    named = ", ".join(sorted(found))
    return "" if found == {"exact"} else f" ({named}{', a squared gradient a sequence' * ('causal_lm' in losses)})"


def _source_fisher(context: StageContext, source: Source, params: Params) -> dict[str, Tensor]:
    context.network.load(source.read)
    data = source.data or context.evaluation_data()
    fisher = diagonal_fisher(context.network, data, params.examples, params.estimator, context.seed)
    if params.normalize:
        norm = torch.sqrt(
            sum((value.square().sum() for value in fisher.values()), torch.zeros((), dtype=torch.float64))
        )
        fisher = {name: value / norm if norm > 0 else value for name, value in fisher.items()}
    return fisher


def _merge_tensor(
    context: StageContext, name: str, fishers: Sequence[Tensor | None], epsilon: float, reason: str
) -> None:
    values = [source.read(name) for source in context.sources]
    known = [fisher for fisher in fishers if fisher is not None]
    usable = len(known) == len(values)
    # Without Fisher information every element counts the same, and the shares become those of the weighted mean.
    importance = known if usable else [torch.ones_like(value, dtype=torch.float64) for value in values]
    bounds = elementwise_bounds(
        [source.weight * (entry + epsilon) for source, entry in zip(context.sources, importance, strict=True)]
    )
    context.network.tensor(name).copy_(mix_elementwise(values, bounds))
    context.record(
        layer=name,
        kind="tensor",
        action="merged",
        shares=mean_shares(bounds),
        step=1.0,
        payload=pack_shares(bounds),
        reason=reason if usable else "weighted mean: no finite Fisher information",
    )


METHOD = NetworkMethod(name="fisher", params=Params, run=run, kind="merging")
