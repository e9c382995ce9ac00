"""Fisher merging: each parameter is averaged by how much each source's predictions depend on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.losses import IGNORED, LossKind
from cogram_core.methods.contract import Field, MethodParams, NetworkMethod, Source, StageContext
from cogram_core.mixing import elementwise_bounds, mean_shares, mix_elementwise, pack_shares
from cogram_core.networks.network import Network
from cogram_core.stopping import stop_point

_RELATIVE_EPSILON = 1e-10
# Elements of gradients held at once, or one gradient where it is larger: 2²³ float32 are 32 MiB. A constant, so that
# results don't depend on the memory at hand.
_GRADIENT_ELEMENTS = 2**23


class Params(MethodParams):
    """Parameters of ``fisher``."""

    examples: int = Field(256, ge=1, description="examples a source, drawn evenly over its data")
    normalize: bool = Field(False, description="divide each source's Fisher by its norm, so that none dominates")


def run(context: StageContext, params: Params) -> None:
    """θ = Σ cᵢ (Fᵢ + ε) θᵢ / Σ cᵢ (Fᵢ + ε), parameter by parameter.

    Fᵢ is source i's diagonal Fisher information on its own data, else on the evaluation data (for token data its empirical
    Fisher information by sequences, see ``fisher_chunks``); cᵢ its weight; ε is 1e-10
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
    losses = {(source.data or context.evaluation_data()).loss for source in context.sources}
    sequences = " (empirical, a squared gradient a sequence)" if "causal_lm" in losses else ""
    reason = f"shares by Fisher information{sequences}"
    for name in context.network.names:
        stop_point()
        _merge_tensor(context, name, [fisher.get(name) for fisher in fishers], epsilon, reason)


def _source_fisher(context: StageContext, source: Source, params: Params) -> dict[str, Tensor]:
    network = context.network
    network.load(source.read)
    data = source.data or context.evaluation_data()
    total: dict[str, Tensor] = {}
    examples = data.evenly(params.examples)
    for chunk in fisher_chunks(network, examples):
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


def fisher_chunks(network: Network, data: Dataset) -> Iterator[dict[str, Tensor]]:
    """Diagonal Fisher information summed over a chunk's examples, for every trainable tensor; each example by itself.

    Classes: Σ_y p_y (∇ log p_y)², exactly over all of them; targets take no part. Values: Σ_k (∇ z_k)² over the output's
    elements z, which is exact for a Gaussian of unit variance around them; targets take no part. Labels of tokens: the
    square of ∇ Σ_i log p(t_{i+1} | t_1…t_i) over a sequence's predicted tokens, the empirical Fisher information of whole
    sequences: every label at every place would cost a gradient each.

    Args:
        network: holds the parameters at which the Fisher is taken.
        data: inputs (N, ...) and targets.

    Yields:
        float64 sums by tensor name, each of the tensor's shape; as many chunks as memory asks for. A chunk has some
        examples, or a part of one example's classes or elements.
    """
    parameters = {name: network.tensor(name) for name in network.parameters if network.tensor(name).numel()}
    if not parameters:
        return
    fitting = max(1, _GRADIENT_ELEMENTS // sum(tensor.numel() for tensor in parameters.values()))
    needed = 1 if data.loss == "causal_lm" else max(1, math.prod(network.output_shape))
    examples, rows = (fitting // needed, needed) if fitting >= needed else (1, fitting)
    gradients = vmap(_pulled_back(network), in_dims=(None, 0, 0))
    for inputs, targets in zip(torch.split(data.inputs, examples), torch.split(data.targets, examples), strict=True):
        weights, directions = _directions(data.loss, network.logits(inputs), targets)
        for part, direction in zip(torch.split(weights, rows, 1), torch.split(directions, rows, 1), strict=True):
            with sdpa_kernel(SDPBackend.MATH):  # the only one that can be mapped over examples
                found = gradients(parameters, inputs, direction)
            yield {name: _weighted_squares(entry, part) for name, entry in found.items()}


def _pulled_back(network: Network) -> Callable[[Mapping[str, Tensor], Tensor, Tensor], dict[str, Tensor]]:
    """For one example and K directions in the space of its output, (K, M): K gradients for each parameter, (K, ...)."""

    def gradients(parameters: Mapping[str, Tensor], example: Tensor, directions: Tensor) -> dict[str, Tensor]:
        def output(values: Mapping[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(network.module, dict(values), (example[None],))
            return found.flatten()

        pull = vjp(output, dict(parameters))[1]
        pulled: dict[str, Tensor] = vmap(pull)(directions)[0]
        return pulled

    return gradients


def _directions(loss: LossKind, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (B, R) and directions (B, R, M): the Fisher information is Σ_r w_r (∇ ⟨direction_r, output⟩)²."""
    flat = outputs.flatten(1) if outputs.ndim > 1 else outputs[:, None]
    each = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device).expand(len(flat), -1, -1)
    if loss == "mean_squared_error":
        return torch.ones_like(flat), each
    if loss == "cross_entropy":
        # ∇ log p_y = J_y − Σ_k p_k J_k is the gradient in the direction e_y − p.
        probabilities = torch.softmax(flat.double(), dim=1)
        return probabilities.to(flat.dtype), (each.double() - probabilities[:, None]).to(flat.dtype)
    following = targets[:, 1:]
    pull = -torch.softmax(outputs[:, :-1].double(), dim=-1)  # (B, T − 1, V)
    pull.scatter_add_(2, following.clamp(min=0)[..., None], torch.ones_like(pull[..., :1]))
    pull *= (following != IGNORED)[..., None]
    direction = torch.nn.functional.pad(pull, (0, 0, 0, 1)).flatten(1).to(flat.dtype)
    return torch.ones_like(flat[:, :1]), direction[:, None]


def _weighted_squares(gradients: Tensor, weights: Tensor) -> Tensor:
    """Σ_b Σ_r w_br g_br² in float64; gradients (B, R, *shape), weights (B, R)."""
    squares = gradients.flatten(2).square_()  # (B, R, P)
    per_example = torch.einsum("br,brp->bp", weights, squares)
    return per_example.double().sum(dim=0).reshape(gradients.shape[2:])


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
