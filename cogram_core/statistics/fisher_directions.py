"""The directions in a network's output whose squared gradients are its Fisher information, by one estimator or another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cogram_core.evaluation.losses import IGNORED, LossKind
from cogram_core.seeding import generator

Estimator = Literal["exact", "sampled", "empirical"]

MOST_EXACT = 32
"""Classes, or elements of the output's values, up to which ``auto`` takes a gradient for each."""
_BLOCK = 256  # probabilities that are summed up together


def resolved(estimator: Estimator | Literal["auto"], loss: LossKind, output_shape: Sequence[int]) -> Estimator:
    """What ``auto`` stands for: ``exact`` up to 32 classes or values, and ``sampled`` above and for labels of tokens."""
    if estimator != "auto":
        return estimator
    return "sampled" if loss == "causal_lm" or math.prod(output_shape) > MOST_EXACT else "exact"


def directions(
    estimator: Estimator, loss: LossKind, outputs: Tensor, targets: Tensor, keys: Sequence[tuple[int, int]]
) -> Iterator[Tensor]:
    """Directions d_r: an example's Fisher information is Σ_r (∇ ⟨d_r, z⟩)², exactly or in expectation.

    Classes, z (N, C): ``exact`` has √p_y (e_y − p) for every class y, as ∇ log p_y is the gradient in the direction
    e_y − p; ``sampled`` one e_y − p with y ~ p; ``empirical`` one with the label y.

    Labels of tokens, z (N, T, V): the model of a sequence's labels is Π_i p(y_{i+1} | t_1…t_i) over its predicted places.
    Labels drawn at all of them at once give one direction whose squared gradient has the exact Fisher information as its
    expectation: the gradients of different places are independent, and their products vanish in the mean. With the
    labels of the data (``empirical``) these products stay. ``exact`` takes a direction for every place and token.

    Values, z (N, ...): the model is a Gaussian of unit variance around them. ``exact`` has a unit vector for every element,
    ``sampled`` one vector of standard normal numbers, ``empirical`` t − z.

    Args:
        estimator: which.
        loss: tells what the outputs are.
        outputs: z.
        targets: classes (N,), values (N, ...) or labels of tokens (N, T), which only ``empirical`` looks at, but for
            where nothing is predicted.
        keys: what each example's draws follow from, (seed, number of the example); nothing else is drawn by.

    Yields:
        Tensors of the outputs' shape and dtype.
    """
    if loss == "mean_squared_error":
        yield from _of_values(estimator, outputs, targets, keys)
    elif loss == "cross_entropy":
        for found in _of_labels(estimator, outputs[:, None], targets[:, None], keys):
            yield found[:, 0]
    else:
        for found in _of_labels(estimator, outputs[:, :-1], targets[:, 1:], keys):
            yield torch.nn.functional.pad(found, (0, 0, 0, 1))


def _of_values(
    estimator: Estimator, outputs: Tensor, targets: Tensor, keys: Sequence[tuple[int, int]]
) -> Iterator[Tensor]:
    if estimator == "empirical":
        yield targets.reshape(outputs.shape).to(outputs.dtype) - outputs
        return
    size = outputs[0].numel()
    if estimator == "sampled":
        drawn = np.stack([_generator(key).standard_normal(size) for key in keys])
        yield torch.from_numpy(drawn).to(outputs).reshape(outputs.shape)
        return
    for place in range(size):
        direction = torch.zeros_like(outputs)
        direction.view(len(outputs), -1)[:, place] = 1.0
        yield direction


def _of_labels(
    estimator: Estimator, logits: Tensor, labels: Tensor, keys: Sequence[tuple[int, int]]
) -> Iterator[Tensor]:
    """For logits (N, P, C) and labels int64 (N, P), −100 where none is predicted."""
    wide = torch.softmax(logits.double(), dim=-1)
    predicted = labels != IGNORED
    if estimator == "exact":
        for place in range(logits.shape[1]):
            for label in range(logits.shape[2]):
                yield _exact(wide, predicted, place, label).to(logits.dtype)
        return
    chosen = _drawn(wide, predicted, keys) if estimator == "sampled" else labels.clamp(min=0)
    pull = -wide
    pull.scatter_add_(2, chosen[..., None], torch.ones_like(pull[..., :1]))
    yield (pull * predicted[..., None]).to(logits.dtype)


def _exact(wide: Tensor, predicted: Tensor, place: int, label: int) -> Tensor:
    """√p_y (e_y − p) at one place, nothing at the others."""
    pull = torch.zeros_like(wide)
    here = wide[:, place]
    pull[:, place] = -here
    pull[:, place, label] += 1.0
    pull[:, place] *= (here[:, label].sqrt() * predicted[:, place])[:, None]
    return pull


def _drawn(wide: Tensor, predicted: Tensor, keys: Sequence[tuple[int, int]]) -> Tensor:
    """Labels y ~ p, int64 (N, P): an example's predicted places take its draws in turn, so that padding changes none."""
    uniform = np.ones(predicted.shape)
    for row, (key, places) in enumerate(zip(keys, predicted.cpu().numpy(), strict=True)):
        uniform[row, places] = 1.0 - _generator(key).random(int(places.sum()))  # in (0, 1]
    return _inverted(wide, torch.from_numpy(uniform).to(wide.device))


def _inverted(wide: Tensor, uniform: Tensor) -> Tensor:
    """The first class up to which the probabilities (..., C) sum to the part ``uniform`` (...), in (0, 1], of all of them.

    Running sums over blocks and then inside of one, taken on the CPU: torch.cumsum has no deterministic kernel on CUDA.
    """
    flat, classes = wide.flatten(0, -2), wide.shape[-1]
    blocks = torch.nn.functional.pad(flat, (0, -classes % _BLOCK)).reshape(len(flat), -1, _BLOCK)
    sums = blocks.sum(2).cpu().cumsum(1)
    wanted = uniform.flatten().cpu()[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, wanted).clamp_(max=sums.shape[1] - 1)  # (M, 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks[torch.arange(len(flat), device=flat.device), block[:, 0].to(flat.device)].cpu().cumsum(1)
    within = torch.searchsorted(inside, torch.minimum(wanted - before, inside[:, -1:]))
    found = (block * _BLOCK + within).clamp_(max=classes - 1)
    return found.reshape(wide.shape[:-1]).to(wide.device)


def _generator(key: tuple[int, int]) -> np.random.Generator:
    seed, example = key
    return generator(seed, "fisher", example)
