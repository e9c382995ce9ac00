"""The diagonal Fisher information of a network on data: how much its predictions depend on each parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from cogram_core.evaluation.datasets import Dataset
from cogram_core.networks.network import Network
from cogram_core.statistics.fisher_directions import Estimator, directions, resolved
from cogram_core.stopping import stop_point

# Elements of gradients held at once, or one gradient where it is larger: 2²³ float32 are 32 MiB. A constant, so that
# results don't depend on the memory at hand.
_GRADIENT_ELEMENTS = 2**23


def diagonal_fisher(
    network: Network, data: Dataset, examples: int, estimator: Estimator | Literal["auto"] = "auto", seed: int = 0
) -> dict[str, Tensor]:
    """F = E_x Σ_r (∇ ⟨d_r, z⟩)² for every trainable tensor, of each example by itself; for the d_r see ``directions``.

    Args:
        network: holds the parameters at which the Fisher information is taken.
        data: inputs (N, ...) and targets.
        examples: how many of them, drawn evenly over the whole.
        estimator: see ``fisher_directions``; ``sampled`` draws by ``seed`` and the number of the example alone.

    Returns:
        float64 by tensor name, each of the tensor's shape; without those in which it is not finite, so that one tensor's
        infinity doesn't reach the others.

    Source: Matena & Raffel 2022, arXiv:2111.09832, eq. 4 and 5.
    """
    chosen = data.evenly(examples)
    total: dict[str, Tensor] = {}
    for chunk in _chunks(network, chosen, resolved(estimator, chosen.loss, network.output_shape), seed):
        stop_point()
        for name, value in chunk.items():
            total[name] = total[name] + value if name in total else value
    return {name: value / len(chosen) for name, value in total.items() if bool(torch.isfinite(value).all())}


def _chunks(network: Network, data: Dataset, estimator: Estimator, seed: int) -> Iterator[dict[str, Tensor]]:
    """Float64 sums by tensor name over a part of the examples, or over a part of one's directions."""
    parameters = {name: network.tensor(name) for name in network.parameters if network.tensor(name).numel()}
    if not parameters:
        return
    fitting = max(1, _GRADIENT_ELEMENTS // sum(tensor.numel() for tensor in parameters.values()))
    gradients = vmap(_pulled_back(network), in_dims=(None, 0, 0))
    for first in range(0, len(data), fitting):
        part = data.take(torch.arange(first, min(first + fitting, len(data)), device=data.targets.device))
        keys = [(seed, first + place) for place in range(len(part))]
        found = directions(estimator, part.loss, network.logits(part.inputs), part.targets, keys)
        while rows := list(islice(found, max(1, fitting // len(part)))):
            with sdpa_kernel(SDPBackend.MATH):  # the only one that can be mapped over examples
                pulled = gradients(parameters, part.inputs, torch.stack([row.reshape(len(row), -1) for row in rows], 1))
            yield {name: _squares(entry) for name, entry in pulled.items()}


def _pulled_back(network: Network) -> Callable[[Mapping[str, Tensor], Tensor, Tensor], dict[str, Tensor]]:
    """For one example and K directions in the space of its output, (K, M): K gradients for each parameter, (K, ...)."""

    def gradients(parameters: Mapping[str, Tensor], example: Tensor, rows: Tensor) -> dict[str, Tensor]:
        def output(values: Mapping[str, Tensor]) -> Tensor:
            found: Tensor = functional_call(network.module, dict(values), (example[None],))
            return found.flatten()

        pull = vjp(output, dict(parameters))[1]
        pulled: dict[str, Tensor] = vmap(pull)(rows)[0]
        return pulled

    return gradients


def _squares(gradients: Tensor) -> Tensor:
    """Σ_b Σ_r g_br² in float64; gradients (B, R, *shape)."""
    return gradients.square_().flatten(0, 1).double().sum(dim=0)
