"""RegMean: each linear layer gives, in the least-squares sense, what every source's layer gives on that source's data."""

from __future__ import annotations

from typing import Literal

from cogram_core.methods.contract import Field, MethodParams, NetworkMethod, StageContext
from cogram_core.mixing import mix, round_shares
from cogram_core.payload import pack_values
from cogram_core.statistics.sites import find_plan
from cogram_core.statistics.walk import Options, Task, solve


class Params(MethodParams):
    """Parameters of ``regmean``."""

    prefix: Literal["own", "merged"] = Field(
        "own",
        description="where a layer's inputs are taken: in each source itself, or in the network merged so far (RegMean++)",
    )
    alpha: float = Field(0.9, ge=0, le=1, description="what remains of the Gram matrices off their diagonals")
    ridge: float = Field(
        1e-4, ge=0, le=1, description="pull towards the weighted mean, by the Gram matrix' mean diagonal"
    )
    examples: int = Field(256, ge=1, description="examples a source, drawn evenly over its data")


def run(context: StageContext, params: Params) -> None:
    """W = (Σ cᵢ Ĝᵢ)⁻¹ Σ cᵢ Ĝᵢ Wᵢ with Ĝ = α G + (1 − α) diag G, layer by layer.

    Gᵢ = XᵢᵀXᵢ / rows are the inputs of a linear layer or convolution on source i's own data, else on the evaluation data,
    with a column of ones for the bias; cᵢ is its weight. A ridge pulls towards the weighted mean, which every other
    tensor gets.

    Source: Jin et al. 2022, arXiv:2212.09849, eq. 2; prefix merged: RegMean++, arXiv:2508.03121.
    """
    if context.restore(len(context.network.names)) is None:
        _merge(context, params)
    context.milestone("merged")


def _merge(context: StageContext, params: Params) -> None:
    network = context.network
    chosen = [(source.data or context.evaluation_data()).evenly(params.examples) for source in context.sources]
    tasks = [
        Task(source.read, data.inputs, source.weight) for source, data in zip(context.sources, chosen, strict=True)
    ]
    plan = find_plan(network, chosen[0].inputs[:1], ["linear"])
    solved, done = plan.names, 0
    weights = [source.weight for source in context.sources]
    shares = round_shares([weight / sum(weights) for weight in weights])
    for name in network.names:
        if name not in solved:
            network.tensor(name).copy_(mix((source.read(name) for source in context.sources), shares))
            context.record(layer=name, kind="tensor", action="merged", shares=shares, reason="the weighted mean")
            context.progress(done := done + 1, len(network.names))
    options = Options(params.prefix, "propagated", params.alpha, params.ridge)
    for found in solve(network, tasks, plan, options):
        context.record(
            layer=found.name,
            kind="tensor",
            action="solved",
            shares=found.shares,
            loss_before=found.loss_before,
            loss_after=found.loss_after,
            reason=found.reason,
            payload=pack_values(network.tensor(found.name)),
        )
        context.progress(done := done + 1, len(network.names))


METHOD = NetworkMethod(name="regmean", params=Params, run=run, kind="merging")
