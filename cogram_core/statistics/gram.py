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
    ``constant``: the last of the f columns is of ones, and not brought along.
    """

    gram: Tensor
    cross: Tensor | None
    constant: bool
    square: float = 0.0
    rows: int = 0

    @classmethod
    def zero(cls, matrix: Tensor, constant: bool, crossed: bool) -> Sums:
        """Of no rows, for a W like ``matrix``, (g, f, o)."""
        groups, features, _ = matrix.shape
        gram = torch.zeros(groups, features, features, dtype=torch.float64, device=matrix.device)
        return cls(gram, torch.zeros_like(matrix, dtype=torch.float64) if crossed else None, constant)

    def add(self, rows: Tensor, beyond: Tensor | None) -> None:
        """Takes more rows, (g, R, f) without the column of ones, and T, (g, R, o), if it is known.

        Products are of the rows' dtype. With float32 each sum over a batch is off by about 1e-7 of what the rows'
        lengths allow, far below the ridge that is added before anything is solved.
        """
        flipped, features = rows.transpose(1, 2), rows.shape[2]
        for first in range(0, features, _BLOCK):
            last = min(first + _BLOCK, features)
            self.gram[:, first:last, first:features] += flipped[:, first:last] @ rows[:, :, first:]
        ones = torch.ones_like(rows[:1, :, :1])
        if self.constant:
            self.gram[:, :features, features:] += flipped @ ones
            self.gram[:, features, features] += rows.shape[1]
        if beyond is not None and self.cross is not None:
            self.cross[:, :features] += flipped @ beyond
            if self.constant:
                self.cross[:, features:] += ones.transpose(1, 2) @ beyond
            self.square += float(torch.linalg.vector_norm(beyond)) ** 2
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
