"""The best order of units for a table of how alike they are."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

# What a unit that keeps its place is given beside its likeness, as a part of the largest one: enough for ties and for
# differences by rounding, and no more.
_STAY = 1e-6


def best_order(likeness: Tensor) -> Tensor:
    """The order of the second network's units in which they are most like the first's; on ties units stay.

    Args:
        likeness: float64 (units, units): of the first network's unit u with the second's unit v; what isn't finite
            counts as none.

    Returns:
        int64 (units,): the second's unit for each unit of the first, so that the sum of likenesses is largest.
    """
    table = torch.nan_to_num(likeness.cpu(), nan=0.0, posinf=0.0, neginf=0.0)
    table.diagonal().add_(_STAY * max(map(abs, map(float, table.aminmax()))))
    _, order = linear_sum_assignment(table.numpy(), maximize=True)
    return torch.from_numpy(order).to(torch.int64)
