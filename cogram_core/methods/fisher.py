"""Fisher merging: each parameter is averaged by how much each source's predictions depend on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from cogram_core.evaluation.datasets import Dataset
from cogram_core.methods.contract import Field, MethodParams, NetworkMethod, Source, StageContext
from cogram_core.mixing import elementwise_bounds, mean_shares, mix_elementwise, pack_shares
from cogram_core.networks.network import Network
from cogram_core.stopping import stop_point

_RELATIVE_EPSILON = 1e-10
# Elements of per-example Jacobians held at once: 2²³ float32 are 32 MiB. A constant, so that results don't depend on
# the memory at hand.
_JACOBIAN_ELEMENTS = 2**23


class Params(MethodParams):
    """Parameters of ``fisher``."""

    examples: int = Field(256, ge=1, description="examples a source, drawn evenly over its data")
    normalize: bool = Field(False, description="divide each source's Fisher by its norm, so that none dominates")


def run(context: StageContext, params: Params) -> None:
    """θ = Σ cᵢ (Fᵢ + ε) θᵢ / Σ cᵢ (Fᵢ + ε), parameter by parameter.

    Fᵢ is source i's diagonal Fisher information on its own data, else on the evaluation data; cᵢ its weight; ε is 1e-10
    of the largest entry, so that a parameter that no source cares about gets the weighted mean. The shares are rounded
    to multiples of 2⁻¹⁵ and stand in the trace, so that a replay needs no data. Statistics of normalisation layers have
    no gradient and get the weighted mean, as does a tensor whose Fisher information overflows.

    Source: Matena & Raffel 2022, arXiv:2111.09832, eq. 4 and 5.
    """
    if context.restore(len(context.network.names)) is None:
        _merge(context, params)
    context.milestone("merged")


def _merge(context: StageContext, params: Params) -> None:
    fishers = []
    for place, source in enumerate(context.sources):
        fishers.append(_source_fisher(context, source, params))
        context.progress(place + 1, len(context.sources))
    largest = max((float(entry.max()) for fisher in fishers for entry in fisher.values()), default=0.0)
    epsilon = _RELATIVE_EPSILON * largest or 1.0
    for name in context.network.names:
        stop_point()
        _merge_tensor(context, name, [fisher.get(name) for fisher in fishers], epsilon)


def _source_fisher(context: StageContext, source: Source, params: Params) -> dict[str, Tensor]:
    network = context.network
    network.load({name: source.read(name) for name in network.names})
    data = source.data or context.evaluation_data()
    total: dict[str, Tensor] = {}
    examples = data.evenly(params.examples)
    for chunk in exact_fisher_chunks(network, examples):
        stop_point()
        for name, value in chunk.items():
            total[name] = total[name] + value if name in total else value
    # Left out where it overflowed, so that one tensor's infinity reaches neither the others' ε nor their norm.
    fisher = {name: value / len(examples) for name, value in total.items() if bool(torch.isfinite(value).all())}
    if params.normalize:
        norm = torch.sqrt(
            sum((value.square().sum() for value in fisher.values()), torch.zeros((), dtype=torch.float64))
        )
        fisher = {name: value / norm if norm > 0 else value for name, value in fisher.items()}
    return fisher


def exact_fisher_chunks(network: Network, data: Dataset) -> Iterator[dict[str, Tensor]]:
    """Σ over a chunk's examples of Σ_y p_y (∇ log p_y)², for every trainable tensor, exactly over all classes.

    With the Jacobian J of the logits, ∇ log p_y = J_y − Σ_k p_k J_k; each example's is squared by itself.

    Args:
        network: holds the parameters at which the Fisher is taken.
        data: inputs (N, ...); the targets take no part.

    Yields:
        float64 sums by tensor name, each of the tensor's shape; as many chunks as memory asks for.
    """
    parameters = {name: network.tensor(name) for name in network.parameters if network.tensor(name).numel()}
    if not parameters:
        return
    size = sum(tensor.numel() for tensor in parameters.values())
    chunk = max(1, _JACOBIAN_ELEMENTS // max(1, size * math.prod(network.output_shape)))

    def logits(values: Mapping[str, Tensor], example: Tensor) -> Tensor:
        scores: Tensor = functional_call(network.module, dict(values), (example[None],))
        return scores[0]

    jacobian = vmap(jacrev(logits), in_dims=(None, 0))
    for inputs in torch.split(data.inputs, chunk):
        probabilities = torch.softmax(network.logits(inputs).double(), dim=1)  # (B, C)
        yield {name: _fisher_of(entry, probabilities) for name, entry in jacobian(parameters, inputs).items()}


def _fisher_of(jacobian: Tensor, probabilities: Tensor) -> Tensor:
    """Σ_b Σ_y p_by (J_by − Σ_k p_bk J_bk)² in float64; J (B, C, *shape), p (B, C)."""
    flat = jacobian.flatten(2)  # (B, C, P)
    weights = probabilities.to(flat.dtype)
    mean = torch.einsum("bc,bcp->bp", weights, flat)
    squares = (flat - mean[:, None]).square_()
    per_example = torch.einsum("bc,bcp->bp", weights, squares)
    return per_example.double().sum(dim=0).reshape(jacobian.shape[2:])


def _merge_tensor(context: StageContext, name: str, fishers: Sequence[Tensor | None], epsilon: float) -> None:
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
        reason="shares by Fisher information" if usable else "weighted mean: no finite Fisher information",
    )


METHOD = NetworkMethod(name="fisher", params=Params, run=run, kind="merging")
