"""Chain of Merges: layers are fitted in execution order, each to what really reaches it through those merged before."""

from __future__ import annotations

from typing import Literal

from cogram_core.methods import fisher
from cogram_core.methods.contract import Field, MethodParams, NetworkMethod, StageContext
from cogram_core.methods.regmean import average, record_solved, tasks_of
from cogram_core.statistics.sites import find_plan
from cogram_core.statistics.walk import Options, solve


class Params(MethodParams):
    """Parameters of ``chain_of_merges``."""

    target: Literal["original", "propagated"] = Field(
        "original",
        description="fit a merged layer to what each source gave in itself, or to what its layer gives to the merged inputs",
    )
    task_weights: Literal["uniform", "gram_coherence"] = Field(
        "uniform",
        description="the sources' weights alone, or times how much the features of a layer's inputs correlate",
    )
    ridge: float = Field(
        1e-4, ge=0, le=1, description="pull towards the weighted mean, by the Gram matrix' mean diagonal"
    )
    rest: Literal["average", "fisher"] = Field("average", description="how tensors are merged that are not solved for")
    examples: int = Field(256, ge=1, description="examples a source, drawn evenly over its data")


def run(context: StageContext, params: Params) -> None:
    """W = (Σ cᵢ X̂ᵢᵀX̂ᵢ + μI)⁻¹ (Σ cᵢ X̂ᵢᵀYᵢ + μ Σ cᵢ Wᵢ), layer by layer in execution order.

    X̂ᵢ are the inputs that a layer gets of source i's data (its own, else the evaluation data) through the layers merged
    before it. Yᵢ is what source i gave there in itself, or with ``target: propagated`` X̂ᵢ Wᵢ. Scales and shifts of norms
    are fitted in the same way feature by feature, statistics of batch normalisation are taken anew, and embeddings are
    averaged by how often each source's data has their tokens. What remains is merged before all, as ``rest`` says.

    Source: Chain of Merges, arXiv:2508.21421; the target, and the pull towards the mean instead of zero, are our own.
    """
    if context.restore(len(context.network.names)) is None:
        tasks = tasks_of(context, params.examples)
        plan = find_plan(context.network, tasks[0].inputs[:1], ["linear", "features", "normalised", "embedding"])
        rest = [name for name in context.network.names if name not in plan.names]
        if params.rest == "fisher" and rest:
            fisher.merge_by_fisher(context, fisher.Params(examples=params.examples), rest)
        else:
            average(context, rest)
        options = Options("merged", params.target, 1.0, params.ridge, params.task_weights)
        record_solved(context, solve(context.network, tasks, plan, options), len(rest))
    context.milestone("merged")


METHOD = NetworkMethod(name="chain_of_merges", params=Params, run=run, kind="merging")
