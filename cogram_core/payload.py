"""Tensors as bytes, for rows of a trace whose result no shares can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_FORMATS = {torch.float32: "<f4", torch.float64: "<f8"}


def pack_values(tensor: Tensor) -> bytes:
    """The numbers of a tensor of a compute dtype, in row order, little-endian."""
    return tensor.detach().cpu().contiguous().numpy().astype(_FORMATS[tensor.dtype], copy=False).tobytes()


def unpack_values(payload: bytes, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The tensor again, of shape (*shape,), on the CPU.

    Raises:
        ValueError: if the payload has another length.
    """
    form = np.dtype(_FORMATS[dtype])
    if len(payload) != form.itemsize * math.prod(shape):
        raise ValueError(f"{len(payload)} bytes of values for a tensor of shape {list(shape)}")
    values = np.frombuffer(payload, form).astype(form.newbyteorder("="))
    return torch.from_numpy(values.reshape(tuple(shape)))
