"""Evaluation data: inputs with class targets, read from a safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.checkpoints.torch_dtypes import DTYPE_NAMES
from cogram_core.errors import DatasetError, Problem
from cogram_core.preflight.data import check_dataset_header, target_problems, tensor_problems


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

    def equals(self, other: Dataset) -> bool:
        """Whether the examples are the same, in the same order."""
        return torch.equal(self.targets, other.targets) and torch.equal(self.inputs, other.inputs)

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


def read_dataset(path: Path, dtype: torch.dtype, place: str | None = None) -> Dataset:
    """The ``inputs`` and ``targets`` of a safetensors file, inputs converted to ``dtype``.

    Errors name ``place``, by default the path.

    Raises:
        CheckpointError: if the file is not valid safetensors.
        DatasetError: if tensors are missing or don't fit together.
    """
    place = place or str(path)
    header = read_checkpoint_header(path)
    check_dataset_header(header, place)
    with CheckpointReader(header) as reader:
        return make_dataset(reader.read("inputs"), reader.read("targets"), dtype, place)


def make_dataset(inputs: Tensor, targets: Tensor, dtype: torch.dtype, place: str) -> Dataset:
    """A dataset from tensors: inputs (N, ...) of any number type, targets (N,) of integers.

    Raises:
        DatasetError: listing everything that doesn't fit.
    """
    if not all(isinstance(tensor, Tensor) for tensor in (inputs, targets)):
        message = "must be a pair of torch tensors, inputs and targets; convert them with torch.as_tensor"
        raise DatasetError([Problem(place, "dataset.not_tensors", message)])
    names = [DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)) for tensor in (inputs, targets)]
    problems = tensor_problems(names[0], tuple(inputs.shape), names[1], tuple(targets.shape), place)
    if not problems and not torch.isfinite(inputs.to(dtype)).all():
        problems.append(Problem(f"{place}: inputs", "dataset.not_finite", "holds NaN or infinity; take them out"))
    if problems:
        raise DatasetError(problems)
    return Dataset(inputs.to(dtype), targets.to(torch.int64))


def check_targets(dataset: Dataset, classes: int, place: str) -> list[Problem]:
    """The problem of targets that the network has no class for."""
    return target_problems(int(dataset.targets.min()), int(dataset.targets.max()), classes, place)
