"""Preserve first: the early layers are those of one source, the others the weighted mean of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from cogram_core.errors import Problem, RecipeError
from cogram_core.methods.contract import Field, MethodParams, NetworkMethod, Source, StageContext
from cogram_core.mixing import mix, round_shares
from cogram_core.stopping import stop_point


class Params(MethodParams):
    """Parameters of ``preserve_first``."""

    source: str | None = Field(None, description="name of the source whose early layers are kept; null: the first")
    layers: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="how many layers are kept, in the order in which they run; below 1: which part of them"
    )


def run(context: StageContext, params: Params) -> None:
    """θ_l = θ_l of one source for the first layers l, Σ wᵢ θ_l,i / Σ wᵢ for the others.

    Layers are those that CoGraM decides on, in the order in which the network runs them; a part of them is rounded to the
    nearest number of layers, one at least. The shares are rounded to multiples of 2⁻¹⁶ and stand in the trace. Data is
    needed for nothing but the order of the layers: one input is run.

    Source: Qu & Horvath 2024, arXiv:2402.05966: errors of early layers are what grows with depth.
    """
    if context.restore(len(context.network.names)) is None:
        _merge(context, params)
    context.milestone("merged")


def _merge(context: StageContext, params: Params) -> None:
    layers = context.network.layers
    kept, owner = _kept(params.layers, len(layers)), _owner(params.source, context.sources)
    weights = [source.weight for source in context.sources]
    mean = round_shares([weight / math.fsum(weights) for weight in weights])
    alone = tuple(float(place == owner) for place in range(len(weights)))
    places = {tensor: place for place, layer in enumerate(layers) for tensor in layer.tensors}
    for name in context.network.names:
        stop_point()
        early = places[name] < kept
        shares = alone if early else mean
        context.network.tensor(name).copy_(mix((source.read(name) for source in context.sources), shares))
        reason = f"one of the first {kept} of {len(layers)} layers: {context.sources[owner].name}'s own"
        context.record(
            layer=name,
            kind="tensor",
            action="merged",
            shares=shares,
            reason=reason if early else f"weighted mean, behind the first {kept} of {len(layers)} layers",
        )


def _kept(wanted: float, count: int) -> int:
    """How many of ``count`` layers are kept.

    Raises:
        RecipeError: if there are not so many.
    """
    if isinstance(wanted, int):
        if wanted > count:
            message = f"keeps {wanted} layers, and the network has {count}; give a number up to that, or a part of them"
            raise RecipeError([Problem("preserve_first.layers", "recipe.too_many_layers", message)])
        return wanted
    return max(1, math.floor(wanted * count + 0.5))


def _owner(name: str | None, sources: Sequence[Source]) -> int:
    """The place of the source of that name, which the recipe's rules guarantee to be there."""
    return 0 if name is None else [source.name for source in sources].index(name)


METHOD = NetworkMethod(name="preserve_first", params=Params, run=run, kind="merging")
