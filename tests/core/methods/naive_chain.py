"""Chain of Merges as plainly as possible, in float64: after every layer all networks run again from the start."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Array = np.ndarray[Any, np.dtype[np.float64]]


def array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().double().numpy())


def with_ones(rows: Array) -> Array:
    return np.hstack([rows, np.ones((len(rows), 1))])


def matrix_of(layer: nn.Module) -> Array:
    """(in, out), the bias below."""
    assert isinstance(layer, nn.Linear)
    weight = array(layer.weight).T
    return weight if layer.bias is None else np.vstack([weight, array(layer.bias)[None]])


def seen(network: nn.Module, inputs: Tensor, name: str) -> tuple[Array, Array]:
    """Rows that reach a module, and rows that leave it."""
    found: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(
        lambda _, given, output: found.extend([given[0].clone(), output.clone()])
    )
    with torch.no_grad():
        network(inputs)
    handle.remove()
    given, left = (tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor for tensor in found)
    return array(given), array(left)


def least_squares(
    rows: Sequence[Array], wanted: Sequence[Array], shares: Sequence[float], mean: Array, ridge: float
) -> Array:
    """The W that makes Σ a |X W − Y|² / rows + μ |W − W̄|² least, with rows for the ridge beneath the others."""
    scaled = [np.sqrt(share / len(x)) for share, x in zip(shares, rows, strict=True)]
    stacked = np.vstack([factor * x for factor, x in zip(scaled, rows, strict=True)])
    mu = ridge * np.mean(np.sum(stacked**2, axis=0))
    left = np.vstack([stacked, np.sqrt(mu) * np.eye(stacked.shape[1])])
    right = np.vstack([*(factor * y for factor, y in zip(scaled, wanted, strict=True)), np.sqrt(mu) * mean])
    return np.asarray(np.linalg.lstsq(left, right, rcond=None)[0])


def naive_chain(
    modules: Sequence[nn.Module],
    inputs: Sequence[Tensor],
    weights: Sequence[float],
    layers: Sequence[str],
    ridge: float,
    target: str = "original",
) -> nn.Module:
    """Merges linear layers and LayerNorms in the order of ``layers``; all else is the weighted mean.

    Returns:
        The merged network, in float64.
    """
    sources = [copy.deepcopy(module).double().requires_grad_(False) for module in modules]
    shares = [weight / sum(weights) for weight in weights]
    merged = copy.deepcopy(sources[0])
    with torch.no_grad():
        for name, tensor in merged.state_dict().items():
            tensor.copy_(sum(a * s.state_dict()[name] for a, s in zip(shares, sources, strict=True)))
    data = [x.double() if x.is_floating_point() else x for x in inputs]
    for name in layers:
        rows, wanted = [], []
        for source, given in zip(sources, data, strict=True):
            arriving = seen(merged, given, name)[0]
            rows.append(arriving)
            if target == "original":
                wanted.append(seen(source, given, name)[1])
            else:
                with torch.no_grad():
                    wanted.append(array(source.get_submodule(name)(torch.from_numpy(arriving))))
        _fit(merged.get_submodule(name), [s.get_submodule(name) for s in sources], rows, wanted, shares, ridge)
    return merged


def _fit(
    layer: nn.Module,
    own: Sequence[nn.Module],
    rows: Sequence[Array],
    wanted: Sequence[Array],
    shares: Sequence[float],
    ridge: float,
) -> None:
    if isinstance(layer, nn.Linear):
        mean = np.sum([a * matrix_of(each) for a, each in zip(shares, own, strict=True)], axis=0)
        given = list(rows) if layer.bias is None else [with_ones(x) for x in rows]
        found = least_squares(given, wanted, shares, mean, ridge)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(found if layer.bias is None else found[:-1]).T)
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(found[-1]))
        return
    assert isinstance(layer, nn.LayerNorm)
    normal = [(x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + layer.eps) for x in rows]
    for place in range(layer.weight.numel()):
        pairs = [np.array([[float(each.weight[place])], [float(each.bias[place])]]) for each in own]
        mean = np.sum([a * pair for a, pair in zip(shares, pairs, strict=True)], axis=0)
        columns = [with_ones(x[:, place : place + 1]) for x in normal]
        found = least_squares(columns, [y[:, place : place + 1] for y in wanted], shares, mean, ridge)
        with torch.no_grad():
            layer.weight[place], layer.bias[place] = float(found[0, 0]), float(found[1, 0])
