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
from cogram_core.evaluation.evaluator import all_logits
from cogram_core.evaluation.losses import cross_entropy
from cogram_core.networks.network import Network
from cogram_core.stopping import stop_point

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
    """A network on a dataset. Losses in nats a example; ``temperature`` is the divisor behind ``calibrated_loss``."""

    examples: int
    loss: float
    calibrated_loss: float
    temperature: float
    accuracy: float
    classes: tuple[ClassScore, ...]

    def criterion(self, name: str) -> float:
        """What the guard compares: smaller is better; infinity where it is not a number."""
        value = -self.accuracy if name == "accuracy" else float(getattr(self, name))
        return math.inf if math.isnan(value) else value

    def to_document(self) -> dict[str, Any]:
        """Plain data; numbers that JSON lacks become null."""
        document = asdict(self)
        document["classes"] = [_finite(entry) for entry in document["classes"]]
        return _finite(document)


def _finite(document: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in document.items()}


def score(network: Network, dataset: Dataset) -> Score:
    """Scores the network as it stands."""
    logits = all_logits(network, dataset.inputs)
    losses = cross_entropy(logits, dataset.targets)
    right = (logits.argmax(dim=1) == dataset.targets).double()
    temperature, calibrated = calibrate(logits, dataset.targets)
    return Score(
        examples=len(dataset),
        loss=float(losses.mean()),
        calibrated_loss=calibrated,
        temperature=temperature,
        accuracy=float(right.mean()),
        classes=_by_class(losses, right, dataset.targets),
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
    wide = logits.double()
    plain = float(cross_entropy(wide, targets).mean())
    if not math.isfinite(plain) and not bool(torch.isfinite(wide).all()):
        return 1.0, plain

    def loss(log_temperature: float) -> float:
        stop_point()
        return float(cross_entropy(wide / np.exp(log_temperature), targets).mean())

    found = minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-6})
    best, where = min((loss(place), place) for place in (float(found.x), *_LOG_RANGE))
    return (float(np.exp(where)), best) if best < plain else (1.0, plain)
