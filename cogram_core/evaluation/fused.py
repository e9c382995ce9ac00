"""Losses under changes of rank one by compiled code, where what follows is a classifier's plain end.

``rank_one.c`` has the arithmetic. It is built with the package where there is a C compiler; without it, or where the
network ends in another way, the same losses come from torch, only later.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor, nn

from cogram_core.evaluation.losses import LossKind

_STEM = "_rank_one"
_LANES = 16
_MOST_CLASSES = 128  # more are better served by a matrix product


class _Work(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("candidates", "examples", "width", "classes", "padded")),
        *(
            (name, ctypes.c_void_p)
            for name in ("output", "delta", "directions", "rows", "weight", "bias", "targets", "base", "losses")
        ),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code, if it was built."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(_STEM + suffix)
        if path.is_file():
            loaded = ctypes.CDLL(str(path))
            loaded.cogram_rank_one_losses.argtypes = (ctypes.POINTER(_Work), ctypes.c_int64)
            return loaded
    return None


class FusedEnd:
    """What follows a linear layer's output Z: nothing, or a ReLU and one more linear layer; then cross-entropy."""

    def __init__(self, loaded: ctypes.CDLL, directions: Tensor, last: nn.Linear | None, targets: Tensor) -> None:
        self._library = loaded
        self._directions = directions.contiguous()  # (rows, width)
        self._targets = targets.contiguous()
        self._classes = directions.shape[1] if last is None else last.out_features
        padded = -self._classes % _LANES + self._classes
        self._weight = self._bias = None
        if last is not None:
            self._weight = torch.zeros(last.in_features, padded, dtype=torch.float64)
            self._weight[:, : self._classes] = last.weight.detach().t()
            self._bias = torch.zeros(padded, dtype=torch.float64)
            if last.bias is not None:
                self._bias[: self._classes] = last.bias.detach()

    @classmethod
    def of(
        cls, chain: Sequence[nn.Module] | None, directions: Tensor, output: Tensor, kind: LossKind, targets: Tensor
    ) -> FusedEnd | None:
        """The end that the modules after Z are, if it is one of these.

        Args:
            chain: what follows, one module after the other; None: something else.
            directions: what each row of the layer before adds to Z, (rows, width).
            output: Z, (N, width).
            kind: the loss.
            targets: int64 (N,).
        """
        loaded = library()
        fits = output.ndim == 2 and output.dtype == torch.float64 and output.device.type == "cpu"
        if loaded is None or chain is None or not fits or kind != "cross_entropy":
            return None
        chain = [module for module in chain if type(module) not in (nn.Identity, nn.Dropout)]
        last = chain[1] if [type(module) for module in chain] == [nn.ReLU, nn.Linear] else None
        classes = last.out_features if isinstance(last, nn.Linear) else output.shape[1]
        if (chain and last is None) or classes > _MOST_CLASSES:
            return None
        return cls(loaded, directions, last if isinstance(last, nn.Linear) else None, targets)

    def losses(self, output: Tensor, change: Tensor, rows: Tensor, base: Tensor) -> Tensor:
        """Each example's loss under each candidate, float64 (K, N).

        Args:
            output: Z as it stands, (N, width).
            change: δ, (K, N).
            rows: int64 (K,), which direction each candidate goes.
            base: the losses as they stand, (N,); those of examples with δ = 0.

        Raises:
            MemoryError: if there is none left.
        """
        losses = torch.empty(change.shape, dtype=torch.float64)  # not like δ, whose numbers may lie in another order
        kept = [tensor.contiguous() for tensor in (output, change, rows, base)]
        work = _Work(
            *(*change.shape, output.shape[1], self._classes, 0 if self._weight is None else self._weight.shape[1]),
            *(kept[0].data_ptr(), kept[1].data_ptr(), self._directions.data_ptr(), kept[2].data_ptr()),
            *(None if tensor is None else tensor.data_ptr() for tensor in (self._weight, self._bias)),
            *(self._targets.data_ptr(), kept[3].data_ptr(), losses.data_ptr()),
        )
        if self._library.cogram_rank_one_losses(ctypes.byref(work), torch.get_num_threads()):
            raise MemoryError("no memory for the losses of a batch of candidates")
        return losses
