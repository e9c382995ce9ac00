"""Losses that keep their digits: decisions are taken on differences, and rounding must not decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cogram_core.preflight.data import IGNORED, LossKind

__all__ = [
    "IGNORED",
    "LossKind",
    "causal_lm",
    "cross_entropy",
    "example_losses",
    "mean_on_device",
    "mean_squared_error",
    "predicted_tokens",
    "weighted_mean",
]
# Output elements taken at once: 2²² float64 are 32 MiB a temporary, whatever the vocabulary and the number of examples.
_ELEMENTS = 2**22
_LINEAR = 40.0


def example_losses(kind: LossKind, outputs: Tensor, targets: Tensor) -> Tensor:
    """One loss an example, in float64; it does not depend on which examples stand beside it.

    ``cross_entropy``: −log softmax(z)_t, in nats. ``mean_squared_error``: the mean of (z − t)² over an output's
    elements, in squared units. ``causal_lm``: the mean over a sequence's predicted tokens of −log softmax(z_i)_{t_{i+1}},
    in nats; labels stand at the positions of their inputs and are shifted here, and −100 is not predicted.

    Args:
        kind: which loss.
        outputs: what the network gives: (N, C); (N, ...); (N, T, V).
        targets: int64 (N,) in [0, C); floating, as many elements an example as the output has; int64 (N, T) in [0, V)
            or −100, with one predicted token an example or more.

    Returns:
        float64, shape (N,); NaN where a number that counts is NaN, infinity where a target has no probability.
    """
    step = max(1, _ELEMENTS // max(1, outputs[:1].numel()))
    if step >= len(outputs):
        return _LOSSES[kind](outputs, targets)
    parts = zip(torch.split(outputs, step), torch.split(targets, step), strict=True)
    return torch.cat([_LOSSES[kind](output, target) for output, target in parts])


def predicted_tokens(labels: Tensor) -> Tensor:
    """How many tokens of each sequence are predicted: its labels but the first that are not −100.

    Args:
        labels: int64, shape (N, T).

    Returns:
        float64, shape (N,).
    """
    return (labels[:, 1:] != IGNORED).double().sum(dim=1)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(z)_t of each example, in float64.

    Written against the target's logit, log(1 + Σ_{k≠t} exp(z_k − z_t)), with log1p, so that a loss of 1e-12 is not
    rounded to zero as it would be from log-sum-exp minus z_t.

    Args:
        logits: z, shape (N, C).
        targets: t, int64, shape (N,), in [0, C).

    Returns:
        float64, shape (N,); infinity where the target has no probability, NaN where a logit is NaN.
    """
    wide = logits.double()
    places = targets[:, None]
    others = (wide - wide.gather(1, places)).scatter_(1, places, -torch.inf)
    if others.device.type != "cpu":  # the quicker way below would make the host wait
        return _log_one_plus(others)
    losses = others.exp().sum(dim=1).log1p_()
    overflown = losses == torch.inf
    return torch.where(overflown, _log_one_plus(others), losses) if bool(overflown.any()) else losses


def _log_one_plus(others: Tensor) -> Tensor:
    """log(1 + Σ exp x) over the last dimension, whatever the size of x."""
    # Linear from where 1 is below the last digit of the sum.
    return torch.nn.functional.softplus(torch.logsumexp(others, dim=1), threshold=_LINEAR)


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean of (z − t)² over each example's elements, in float64.

    Args:
        outputs: z, floating, shape (N, ...).
        targets: t, floating, with as many elements an example.

    Returns:
        float64, shape (N,).
    """
    count = len(outputs)
    return (outputs.reshape(count, -1).double() - targets.reshape(count, -1).double()).square().mean(dim=1)


def causal_lm(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of −log softmax(z_i)_{t_{i+1}} over each sequence's predicted tokens, in float64.

    Args:
        logits: z, shape (N, T, V).
        labels: t, int64, shape (N, T), in [0, V) or −100.

    Returns:
        float64, shape (N,); NaN for a sequence without a predicted token.
    """
    following = labels[:, 1:]  # (N, T − 1)
    predicted = following != IGNORED
    # Computed for every place and then left out: picking the places would make a GPU wait for the host.
    losses = cross_entropy(logits[:, :-1].flatten(0, 1), following.clamp(min=0).flatten()).reshape(following.shape)
    return torch.where(predicted, losses, 0.0).sum(dim=1) / predicted_tokens(labels)


_LOSSES: Mapping[LossKind, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "mean_squared_error": mean_squared_error,
    "causal_lm": causal_lm,
}


def weighted_mean(losses: Tensor, weights: Tensor | None) -> float:
    """Σ w·l / Σ w in float64; the plain mean without weights. Losses and weights have shape (N,)."""
    return float(mean_on_device(losses, weights))


def mean_on_device(losses: Tensor, weights: Tensor | None) -> Tensor:
    """``weighted_mean`` before the host has it, without dimension."""
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()
