"""How good a network is on a dataset: losses, accuracy, overall and per class."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import batch_size
from cogram_core.evaluation.losses import IGNORED, cross_entropy, example_losses, weighted_mean
from cogram_core.networks.network import Network
from cogram_core.stopping import stop_point

# Output elements taken at once: 2²² float64 are 32 MiB a temporary, whatever the vocabulary and the number of examples.
_ELEMENTS = 2**22
_LOG_RANGE = (math.log(0.01), math.log(100.0))


@dataclass(frozen=True)
class ClassScore:
    """One class: how many examples, their mean loss in nats, and the share classified rightly."""

    target: int
    examples: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Score:
    """A network on a dataset.

    Losses in nats an example, of token data in nats a token, of values in squared units. ``temperature`` is the divisor
    behind ``calibrated_loss``. ``accuracy`` is the share of examples, or of tokens, predicted rightly. Values have no
    accuracy and nothing to calibrate: their calibrated loss is the loss. ``classes`` is empty where there are none.
    """

    examples: int
    loss: float
    calibrated_loss: float
    temperature: float
    accuracy: float | None
    classes: tuple[ClassScore, ...]

    def criterion(self, name: str) -> float:
        """What the guard compares: smaller is better; infinity where it is not a number."""
        value = self.loss if name == "loss" else self.calibrated_loss
        if name == "accuracy":
            assert self.accuracy is not None  # recipes that ask for it on values are refused
            value = -self.accuracy
        return math.inf if math.isnan(value) else value

    def to_document(self) -> dict[str, Any]:
        """Plain data; numbers that JSON lacks become null."""
        document = asdict(self)
        document["classes"] = [_finite(entry) for entry in document["classes"]]
        return _finite(document)


def _finite(document: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in document.items()}


def score(network: Network, dataset: Dataset) -> Score:
    """Scores the network as it stands, batch by batch; what is kept of token scores are those of predicted tokens."""
    losses, logits, targets = [], [], []
    step = max(1, min(batch_size(dataset.inputs), _ELEMENTS // max(1, math.prod(network.output_shape))))
    for inputs, expected in zip(torch.split(dataset.inputs, step), torch.split(dataset.targets, step), strict=True):
        stop_point()
        outputs = network.logits(inputs)
        losses.append(example_losses(dataset.loss, outputs, expected))
        if dataset.loss == "cross_entropy":
            logits.append(outputs)
            targets.append(expected)
        elif dataset.loss == "causal_lm":
            predicted = expected[:, 1:] != IGNORED
            logits.append(outputs[:, :-1][predicted])
            targets.append(expected[:, 1:][predicted])
    each = torch.cat(losses)
    loss = weighted_mean(each, dataset.weights)
    if dataset.loss == "mean_squared_error":
        return Score(len(dataset), loss, loss, 1.0, None, ())
    scores, labels = torch.cat(logits), torch.cat(targets)
    right = (scores.argmax(dim=1) == labels).double()
    temperature, calibrated = calibrate(scores, labels)
    return Score(
        examples=len(dataset),
        loss=loss,
        calibrated_loss=calibrated,
        temperature=temperature,
        accuracy=float(right.mean()),
        classes=_by_class(each, right, labels) if dataset.loss == "cross_entropy" else (),
    )


def _by_class(losses: Tensor, right: Tensor, targets: Tensor) -> tuple[ClassScore, ...]:
    found = []
    for target in torch.unique(targets).tolist():
        mask = targets == target
        found.append(ClassScore(target, int(mask.sum()), float(losses[mask].mean()), float(right[mask].mean())))
    return tuple(found)


def calibrate(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """The temperature T in [0.01, 100] with the least mean cross-entropy of z/T, and that loss.

    The loss is convex in 1/T, hence has one valley in log T; a bounded search finds it, but for the bounds themselves,
    which are tried as well. T = 1 is never done worse than.

    Args:
        logits: z, shape (N, C).
        targets: shape (N,).

    Source: temperature scaling, Guo et al. 2017, arXiv:1706.04599.
    """
    plain = float(example_losses("cross_entropy", logits, targets).mean())
    if not math.isfinite(plain) and not bool(torch.isfinite(logits).all()):
        return 1.0, plain

    def loss(log_temperature: float) -> float:
        stop_point()
        return float(_tempered(logits, targets, float(np.exp(log_temperature))).mean())

    found = minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-6})
    best, where = min((loss(place), place) for place in (float(found.x), *_LOG_RANGE))
    return (float(np.exp(where)), best) if best < plain else (1.0, plain)


def _tempered(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """The cross-entropy of z/T for each row, in float64, a part of the rows at a time."""
    step = max(1, _ELEMENTS // logits.shape[1])
    rows = zip(torch.split(logits, step), torch.split(targets, step), strict=True)
    return torch.cat([cross_entropy(part.double() / temperature, expected) for part, expected in rows])
