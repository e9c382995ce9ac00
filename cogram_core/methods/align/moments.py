"""How alike units of two networks are that do something on the same rows of data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_CONSTANT = 1e-10  # of the mean square: what varies less is rounding


@dataclass
class Moments:
    """Sums over rows of two networks' units at one place, in float64; R units of F features each.

    ``first`` and ``second`` are Σx, (R, F); ``first_squares`` and ``second_squares`` Σ x xᵀ of each unit, (R, F, F);
    ``products`` Σ x yᵀ of each pair of units, (R·F, R·F).
    """

    count: int
    first: Tensor
    second: Tensor
    first_squares: Tensor
    second_squares: Tensor
    products: Tensor

    @classmethod
    def none(cls, units: int, features: int, device: torch.device) -> Moments:
        """Before the first row."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        squares = units, features, features
        products = zeros(units * features, units * features)
        return cls(0, zeros(units, features), zeros(units, features), zeros(*squares), zeros(*squares), products)

    def add(self, first: Tensor, second: Tensor) -> None:
        """Adds rows (N, R, F) of both networks."""
        self.count += len(first)
        self.first += first.sum(0)
        self.second += second.sum(0)
        self.first_squares += torch.einsum("nuf,nug->ufg", first, first)
        self.second_squares += torch.einsum("nuf,nug->ufg", second, second)
        self.products += first.flatten(1).T @ second.flatten(1)

    def likeness(self) -> Tensor:
        """(R, R): the correlation of each pair of units; of units of several features how alike what they span is.

        That is ‖Cov(x, y)‖² / (‖Cov(x, x)‖·‖Cov(y, y)‖) with Frobenius norms, which is 1 for units that differ by a
        rotation and a factor, and doesn't depend on an order of features. Units that don't vary are like none.

        Source: Kornblith et al. 2019, arXiv:1905.00414, linear centred kernel alignment in its feature form.
        """
        units, features = self.first.shape
        count = max(1, self.count)
        products = torch.addr(self.products, self.first.flatten(), self.second.flatten(), alpha=-1 / count)
        first = _spread(self.first_squares, self.first, count)
        second = _spread(self.second_squares, self.second, count)
        if features > 1:
            blocks = products.square_().reshape(units, features, units, features)
            products, first, second = blocks.sum(dim=(1, 3)), first.square(), second.square()
        return products.mul_(_inverse(first)[:, None]).mul_(_inverse(second))


def _spread(squares: Tensor, sums: Tensor, count: int) -> Tensor:
    """√‖Σ (x − x̄)(x − x̄)ᵀ‖ of each unit, (R,); 0 where it is but rounding."""
    centred = squares - sums[:, :, None] * sums[:, None, :] / count
    total = squares.diagonal(dim1=1, dim2=2).sum(1)
    varies = centred.diagonal(dim1=1, dim2=2).sum(1) > _CONSTANT * total
    size: Tensor = centred.norm(dim=(1, 2)).sqrt()
    return size * varies


def _inverse(spread: Tensor) -> Tensor:
    """1 / x, and 0 of 0."""
    return torch.where(spread > 0, 1 / spread, 0.0)
