"""Holds torch to the resolved threads and to one way of computing while a run lasts, and puts everything back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch

from cogram_core.errors import Problem, RecipeError

# Small networks lose by more threads: on two shared cores, two were measured 25 times slower than one. A fixed number,
# not the machine's, so that the same recipe gives the same bytes on another machine of the same device class.
_DEFAULT_THREADS = 1


def resolve_threads(threads: int | Literal["auto"]) -> int:
    """The number of threads that goes into the resolved recipe."""
    return _DEFAULT_THREADS if threads == "auto" else threads


def resolve_device(device: str) -> torch.device:
    """The device that goes into the resolved recipe.

    Raises:
        RecipeError: if the machine has no such device.
    """
    chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        message = f"this machine has {torch.cuda.device_count()} CUDA devices; write device: auto or cpu"
        raise RecipeError([Problem("device", "recipe.no_such_device", f"{device}: {message}")])
    if chosen.type == "cuda":
        # cuBLAS is deterministic only with a workspace of fixed size, which it reads when CUDA starts.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return chosen


@contextmanager
def repeatable(threads: int, device: torch.device) -> Iterator[None]:
    """Inside the block: this many threads, one way of computing, no reduced precision, no autotuning.

    Nor torch's short cut through transformer encoder layers: it calls none of the modules inside, so that a network could
    not be cut there.

    On a CPU with a fixed number of threads torch computes one way; asking for deterministic kernels there would only load
    its compiler, for two seconds.
    """
    kept_threads = torch.get_num_threads()
    kept_precision = torch.get_float32_matmul_precision()
    kept_fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _repeatable_cuda() if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_num_threads(kept_threads)
        torch.set_float32_matmul_precision(kept_precision)
        torch.backends.mha.set_fastpath_enabled(kept_fastpath)


@contextmanager
def _repeatable_cuda() -> Iterator[None]:
    kept = torch.are_deterministic_algorithms_enabled()
    kept_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    kept_cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = False, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(kept, warn_only=kept_warn)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = kept_cudnn
