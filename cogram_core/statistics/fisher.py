"""The diagonal Fisher information of a network on data: how much its predictions depend on each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cogram_core.evaluation.datasets import Dataset
from cogram_core.networks.network import Network
from cogram_core.statistics.fisher_batches import InBatches, parts_of
from cogram_core.statistics.fisher_cache import remembered
from cogram_core.statistics.fisher_directions import Estimator, directions, resolved
from cogram_core.stopping import stop_point


def diagonal_fisher(
    network: Network, data: Dataset, examples: int, estimator: Estimator | Literal["auto"] = "auto", seed: int = 0
) -> dict[str, Tensor]:
    """F = E_x Σ_r (∇ ⟨d_r, z⟩)² for every trainable tensor, of each example by itself; for the d_r see ``directions``.

    A batch of examples runs forward once and backward once a direction, and each example's gradients are made of what
    arrived at the modules and what came back to them. Whether that gives the true gradients is tried first, with two
    examples; tensors where it doesn't get theirs example by example.

    Args:
        network: holds the parameters at which the Fisher information is taken.
        data: inputs (N, ...) and targets.
        examples: how many of them, drawn evenly over the whole.
        estimator: see ``fisher_directions``; ``sampled`` draws by ``seed`` and the number of the example alone.

    Returns:
        float64 by tensor name, each of the tensor's shape, rounded to the tensor's dtype; without those in which it is not
        finite, so that one tensor's infinity doesn't reach the others.

    Source: Matena & Raffel 2022, arXiv:2111.09832, eq. 4 and 5.
    """
    chosen = data.evenly(examples)
    kind = resolved(estimator, chosen.loss, network.output_shape)
    parameters = (kind, seed if kind == "sampled" else None)
    means = remembered(network, chosen, parameters, lambda: _means(network, chosen, kind, seed))
    return {name: mean.double() for name, mean in means.items() if bool(torch.isfinite(mean).all())}


def _means(network: Network, chosen: Dataset, kind: Estimator, seed: int) -> dict[str, Tensor]:
    """Of all trainable tensors, in their own dtype: summed in float64 and rounded once."""
    names = [name for name in network.parameters if network.tensor(name).numel()]
    total = InBatches(network, names).sums(chosen, kind, seed)
    left = [name for name in names if name not in total]
    if left:
        total |= _one_by_one(network, left, chosen, kind, seed)
    return {name: (total[name] / len(chosen)).to(network.tensor(name).dtype) for name in names}


def _one_by_one(network: Network, names: Sequence[str], data: Dataset, kind: Estimator, seed: int) -> dict[str, Tensor]:
    """Σ over examples and directions, in float64, by a forward pass an example and a backward pass each direction."""
    leaves = {name: network.tensor(name).requires_grad_() for name in names}
    total = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in leaves.items()}
    for part, keys in parts_of(data, 1, seed):
        with torch.enable_grad():
            outputs = network.outputs(leaves, part.inputs)
        if not outputs.requires_grad:
            continue
        for direction in directions(kind, part.loss, outputs.detach(), part.targets, keys):
            stop_point()
            found = torch.autograd.grad(
                outputs, list(leaves.values()), direction, retain_graph=True, materialize_grads=True
            )
            for name, gradient in zip(names, found, strict=True):
                total[name] += gradient.square().double()
    return total
