"""RegMean: each linear layer gives, in the least-squares sense, what every source's layer gives on that source's data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from cogram_core.methods.contract import Field, MethodParams, NetworkMethod, StageContext
from cogram_core.mixing import mix, round_shares
from cogram_core.payload import pack_values
from cogram_core.statistics.sites import find_plan
from cogram_core.statistics.walk import Options, Solved, Task, solve


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
        tasks = tasks_of(context, params.examples)
        plan = find_plan(context.network, tasks[0].inputs[:1], ["linear"])
        rest = [name for name in context.network.names if name not in plan.names]
        average(context, rest)
        options = Options(params.prefix, "propagated", params.alpha, params.ridge)
        record_solved(context, solve(context.network, tasks, plan, options), len(rest))
    context.milestone("merged")


def tasks_of(context: StageContext, examples: int) -> list[Task]:
    """What each source brings: its tensors, examples of its own data, else of the evaluation data, and its weight."""
    chosen = [(source.data or context.evaluation_data()).evenly(examples) for source in context.sources]
    return [Task(source.read, data.inputs, source.weight) for source, data in zip(context.sources, chosen, strict=True)]


def average(context: StageContext, names: Sequence[str]) -> None:
    """Gives these tensors the weighted mean of the sources, and records it."""
    weights = [source.weight for source in context.sources]
    shares = round_shares([weight / sum(weights) for weight in weights])
    for done, name in enumerate(names):
        context.network.tensor(name).copy_(mix((source.read(name) for source in context.sources), shares))
        context.record(layer=name, kind="tensor", action="merged", shares=shares, reason="the weighted mean")
        context.progress(done + 1, len(context.network.names))


def record_solved(context: StageContext, solved: Iterable[Solved], done: int) -> None:
    """Records tensors as they are found; ``done`` of the network's were before."""
    for place, found in enumerate(solved):
        context.record(
            layer=found.name,
            kind="tensor",
            action="solved",
            shares=found.shares,
            loss_before=found.loss_before,
            loss_after=found.loss_after,
            reason=found.reason,
            payload=pack_values(context.network.tensor(found.name)),
        )
        context.progress(done + place + 1, len(context.network.names))


METHOD = NetworkMethod(name="regmean", params=Params, run=run, kind="merging")
