"""Sums of products over rows of equations, added up batch by batch in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 256  # columns of a Gram matrix at once: what lies below its diagonal isn't computed


@dataclass
class Sums:
    """Of rows X (g, R, f) and T (g, R, o) so far: XᵀX, XᵀT, the sum of T², all float64, and how many rows there were.

    T is what a source gave beyond what its layer gives to X; ``cross`` is None where it isn't asked for, and then zero.
    """

    gram: Tensor
    cross: Tensor | None
    square: float = 0.0
    rows: int = 0

    @classmethod
    def zero(cls, groups: int, features: int, outputs: int | None, device: torch.device) -> Sums:
        """Of no rows; ``outputs`` is None where there is no T."""
        gram = torch.zeros(groups, features, features, dtype=torch.float64, device=device)
        if outputs is None:
            return cls(gram, None)
        return cls(gram, torch.zeros(groups, features, outputs, dtype=torch.float64, device=device))

    def add(self, rows: Tensor, beyond: Tensor | None) -> None:
        """Takes more rows, (g, R, f), and T, (g, R, o), if it is known.

        Products are of the rows' dtype. With float32 each sum over a batch is off by about 1e-7 of what the rows'
        lengths allow, far below the ridge that is added before anything is solved.
        """
        flipped = rows.transpose(1, 2)
        for first in range(0, rows.shape[2], _BLOCK):
            last = min(first + _BLOCK, rows.shape[2])
            self.gram[:, first:last, first:] += flipped[:, first:last] @ rows[:, :, first:]
        if beyond is not None and self.cross is not None:
            self.cross += flipped @ beyond
            self.square += float(beyond.double().square().sum())
        self.rows += rows.shape[1]

    def finish(self) -> None:
        """Divides by the rows, and fills in what lies below the diagonal."""
        upper, count = self.gram.triu_(), max(1, self.rows)
        self.gram = (upper + upper.triu(1).transpose(1, 2)) / count
        self.cross = None if self.cross is None else self.cross / count
        self.square /= count


def coherence(gram: Tensor, constant: bool) -> float:
    """The mean absolute correlation of different features, in [0, 1]: the off-diagonal mass of the normalised Gram matrix.

    Args:
        gram: XᵀX, float64 (g, f, f).
        constant: the last feature is the column of ones, and takes no part.
    """
    inner = gram[:, :-1, :-1] if constant else gram
    length = torch.sqrt(inner.diagonal(dim1=1, dim2=2))
    scale = torch.where(length > 0, 1 / length, torch.zeros_like(length))
    normalised = (inner * scale[:, :, None] * scale[:, None]).abs()
    features = inner.shape[1]
    pairs = len(inner) * features * (features - 1)
    mass = float(normalised.sum() - normalised.diagonal(dim1=1, dim2=2).sum())
    return mass / pairs if pairs and math.isfinite(mass) else 0.0
