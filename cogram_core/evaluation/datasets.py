"""Evaluation data: inputs with class targets, read from a safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.errors import DatasetError, Problem

INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Dataset:
    """Examples to evaluate on.

    ``inputs`` has shape (N, ...), in the compute dtype; ``targets`` is int64 (N,); ``weights`` is float64 (N,), or None
    where every example counts the same.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def evenly(self, count: int) -> Dataset:
        """At most ``count`` examples, drawn evenly over the whole, never its head alone."""
        total = len(self)
        if count >= total:
            return self
        places = torch.arange(count, device=self.targets.device) * total // count
        return Dataset(self.inputs[places], self.targets[places])

    def to(self, device: torch.device) -> Dataset:
        """The same examples on ``device``."""
        weights = None if self.weights is None else self.weights.to(device)
        return Dataset(self.inputs.to(device), self.targets.to(device), weights)


def read_dataset(path: Path, dtype: torch.dtype) -> Dataset:
    """The ``inputs`` and ``targets`` of a safetensors file, inputs converted to ``dtype``.

    Raises:
        CheckpointError: if the file is not valid safetensors.
        DatasetError: if tensors are missing or don't fit together.
    """
    header = read_checkpoint_header(path)
    missing = [name for name in ("inputs", "targets") if name not in header.tensors]
    if missing:
        raise DatasetError(
            Problem(str(path), "dataset.missing_tensor", f"has no tensor {name!r}; a dataset has inputs and targets")
            for name in missing
        )
    with CheckpointReader(header) as reader:
        return make_dataset(reader.read("inputs"), reader.read("targets"), dtype, str(path))


def make_dataset(inputs: Tensor, targets: Tensor, dtype: torch.dtype, place: str) -> Dataset:
    """A dataset from tensors: inputs (N, ...) of any number type, targets (N,) of integers.

    Raises:
        DatasetError: listing everything that doesn't fit.
    """
    problems = []
    if targets.dtype not in INTEGER_DTYPES or targets.ndim != 1:
        what = f"{targets.dtype} of shape {tuple(targets.shape)}"
        message = f"must be one integer class an example, shape (N,); here {what}"
        problems.append(Problem(f"{place}: targets", "dataset.invalid_targets", message))
    if inputs.ndim < 2 or inputs.dtype == torch.bool:
        what = f"{inputs.dtype} of shape {tuple(inputs.shape)}"
        problems.append(
            Problem(f"{place}: inputs", "dataset.invalid_inputs", f"must be numbers of shape (N, ...); here {what}")
        )
    elif inputs.shape[0] != targets.shape[0] or inputs.shape[0] == 0:
        message = f"{inputs.shape[0]} inputs and {targets.shape[0]} targets; there must be as many, and at least one"
        problems.append(Problem(place, "dataset.length_mismatch", message))
    elif not torch.isfinite(inputs).all():
        problems.append(Problem(f"{place}: inputs", "dataset.not_finite", "holds NaN or infinity; take them out"))
    if problems:
        raise DatasetError(problems)
    return Dataset(inputs.to(dtype), targets.to(torch.int64))


def check_targets(dataset: Dataset, classes: int, place: str) -> list[Problem]:
    """The problem of targets that the network has no class for."""
    low, high = int(dataset.targets.min()), int(dataset.targets.max())
    if low >= 0 and high < classes:
        return []
    message = f"targets reach from {low} to {high}, but the network has the classes 0 to {classes - 1}"
    return [Problem(f"{place}: targets", "dataset.targets_outside_classes", message + "; correct the targets")]
