"""Token ids, which places are padding, and token types as one tensor of integers, and back again."""

from __future__ import annotations

import torch
from torch import Tensor

PADDING = -1
"""What a place holds that is padding."""
_TYPE_BITS = 32  # where the token type begins; below is the id


def pack(ids: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
    """One tensor of ids, mask and types, int64 (N, T): padding is −1, its id and type are lost.

    Args:
        ids: token ids, integers (N, T) in [0, 2³²).
        mask: 1 or true at places that count, (N, T); None: all do.
        types: token types, integers (N, T) in [0, 2³⁰); None: all are 0.
    """
    packed = ids.to(torch.int64)
    if types is not None:
        packed = packed | (types.to(torch.int64) << _TYPE_BITS)
    return packed.clone() if mask is None else torch.where(mask.bool(), packed, PADDING)


def unpack(packed: Tensor, padding_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and types of packed tokens, int64 (N, T) each; padding has the id ``padding_id`` and the type 0."""
    mask = packed >= 0
    ids = torch.where(mask, packed & (2**_TYPE_BITS - 1), padding_id)
    return ids, mask.to(torch.int64), torch.where(mask, packed >> _TYPE_BITS, 0)


def present(packed: Tensor) -> Tensor | None:
    """Which places are no padding, bool (N, T); None where all are, or the numbers are no tokens."""
    if packed.is_floating_point() or packed.ndim != 2:
        return None
    mask = packed >= 0
    return None if bool(mask.all()) else mask


def flush_left(packed: Tensor) -> Tensor:
    """Packed tokens (N, T) with all padding behind what is present, whose order stays.

    Positions count from the row's start then, wherever its tokens stood before.
    """
    order = torch.argsort((packed < 0).to(torch.int8), dim=1, stable=True)
    return packed.gather(1, order)
