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

from cogram_core.evaluation.datasets import Dataset

_STEM = "_rank_one"
_VERSION = 2  # as rank_one.c has it
_LANES = 16
_MOST_CLASSES = 128  # more are better served by a matrix product


class _Work(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("candidates", "examples", "width", "classes", "padded")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("output", "levels", "picks", "arriving", "directions", "rows", "weight", "bias", "targets"),
                *("weights", "base", "losses", "means"),
            )
        ),
    )


@cache
def library() -> ctypes.CDLL | None:
    """The compiled code, if it was built from this version's source."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(_STEM + suffix)
        if path.is_file():
            return _loaded(path)
    return None


def _loaded(path: Path) -> ctypes.CDLL | None:
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.cogram_rank_one_version.restype = ctypes.c_int64
        loaded.cogram_rank_one_losses.argtypes = (ctypes.POINTER(_Work), ctypes.c_int64)
    except (OSError, AttributeError):  # built for another machine, or long ago
        return None
    return loaded if loaded.cogram_rank_one_version() == _VERSION else None


class FusedEnd:
    """What follows a linear layer's output Z: nothing, or a ReLU and one more linear layer; then cross-entropy."""

    def __init__(self, loaded: ctypes.CDLL, directions: Tensor, last: nn.Linear | None, examples: Dataset) -> None:
        self._library = loaded
        self._directions = directions.contiguous()  # (rows, width)
        self._targets = examples.targets.contiguous()
        weights = torch.ones(len(examples), dtype=torch.float64) if examples.weights is None else examples.weights
        self._shares = (weights / weights.sum()).contiguous()
        self._classes = directions.shape[1] if last is None else last.out_features
        self._padded = 0 if last is None else -self._classes % _LANES + self._classes
        self._kept = () if last is None else _padded(last, self._padded)
        self._pointers: list[int | None] = [tensor.data_ptr() for tensor in self._kept] or [None, None]

    @classmethod
    def of(
        cls, chain: Sequence[nn.Module] | None, directions: Tensor, output: Tensor, examples: Dataset
    ) -> FusedEnd | None:
        """The end that the modules after Z are, if it is one of these.

        Args:
            chain: what follows, one module after the other; None: something else.
            directions: what each row of the layer before adds to Z, (rows, width).
            output: Z, (N, width).
            examples: the N examples.
        """
        loaded = library()
        fits = output.ndim == 2 and output.dtype == torch.float64 and output.device.type == "cpu"
        if loaded is None or chain is None or not fits or examples.loss != "cross_entropy":
            return None
        chain = [module for module in chain if type(module) not in (nn.Identity, nn.Dropout)]
        last = chain[1] if [type(module) for module in chain] == [nn.ReLU, nn.Linear] else None
        classes = last.out_features if isinstance(last, nn.Linear) else output.shape[1]
        if (chain and last is None) or classes > _MOST_CLASSES:
            return None
        return cls(loaded, directions, last if isinstance(last, nn.Linear) else None, examples)

    def losses(
        self, output: Tensor, levels: Tensor, picks: Tensor | None, arriving: Tensor, rows: Tensor, base: Tensor
    ) -> tuple[Tensor, list[float]]:
        """Each example's loss under each candidate, float64 (K, N), and their means over the examples.

        Args:
            output: Z as it stands, (N, width).
            levels: what would arrive at the layer that gives Z, (K, N), or with ``picks`` (M, N).
            picks: int64 (K,), which of the levels are the candidates'.
            arriving: what arrives now, (rows, N).
            rows: int64 (K,), at which input each candidate's level arrives.
            base: the losses as they stand, (N,); those of examples that nothing else reaches.

        Raises:
            MemoryError: if there is none left.
        """
        count, examples = len(rows), len(output)
        losses = torch.empty(count, examples, dtype=torch.float64)
        means = (ctypes.c_double * count)()
        # Read as they lie in memory; rows and picks of a window of one unit are every so many of a wider array's.
        output, levels, rows, base = (tensor.contiguous() for tensor in (output, levels, rows, base))
        picks = None if picks is None else picks.contiguous()
        work = _Work(
            *(count, examples, output.shape[1], self._classes, self._padded),
            *(output.data_ptr(), levels.data_ptr(), None if picks is None else picks.data_ptr(), arriving.data_ptr()),
            *(self._directions.data_ptr(), rows.data_ptr(), *self._pointers, self._targets.data_ptr()),
            *(self._shares.data_ptr(), base.data_ptr(), losses.data_ptr(), ctypes.addressof(means)),
        )
        if self._library.cogram_rank_one_losses(ctypes.byref(work), torch.get_num_threads()):
            raise MemoryError("no memory for the losses of a batch of candidates")
        return losses, list(means)


def _padded(last: nn.Linear, width: int) -> tuple[Tensor, Tensor]:
    """A linear layer's weight, transposed, (in, width), and bias, (width,), filled up with zeros."""
    weight = torch.zeros(last.in_features, width, dtype=torch.float64)
    weight[:, : last.out_features] = last.weight.detach().t()
    bias = torch.zeros(width, dtype=torch.float64)
    if last.bias is not None:
        bias[: last.out_features] = last.bias.detach()
    return weight, bias
