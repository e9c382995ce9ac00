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
from cogram_core.evaluation.losses import IGNORED, LossKind, predicted_tokens
from cogram_core.preflight.data import check_dataset_header, target_problems, tensor_problems, value_problems


@dataclass(frozen=True)
class Dataset:
    """Examples to evaluate on.

    ``inputs`` has shape (N, ...), in the compute dtype, or int64 where the network takes token ids. ``targets`` decides
    on the loss: int64 (N,) are classes, floating (N, ...) are values, int64 (N, T) are token labels, −100 ignored.
    ``weights`` is float64 (N,), or None where every example counts the same; the loss of the whole is Σ w·l / Σ w. Token
    data always has weights, by default its predicted tokens, so that its loss is the mean over tokens.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weights is None and self.loss == "causal_lm":
            object.__setattr__(self, "weights", predicted_tokens(self.targets))

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def loss(self) -> LossKind:
        """The loss that the targets ask for."""
        if self.targets.is_floating_point():
            return "mean_squared_error"
        return "cross_entropy" if self.targets.ndim == 1 else "causal_lm"

    def equals(self, other: Dataset) -> bool:
        """Whether the examples are the same, in the same order."""
        return torch.equal(self.targets, other.targets) and torch.equal(self.inputs, other.inputs)

    def evenly(self, count: int) -> Dataset:
        """At most ``count`` examples, drawn evenly over the whole, never its head alone."""
        total = len(self)
        if count >= total:
            return self
        return self.take(torch.arange(count, device=self.targets.device) * total // count)

    def take(self, places: Tensor) -> Dataset:
        """The examples at ``places``, int64 (M,), in that order, with their weights."""
        weights = None if self.weights is None else self.weights[places]
        return Dataset(self.inputs[places], self.targets[places], weights)

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


def check_outputs(dataset: Dataset, shape: tuple[int, ...], place: str) -> list[Problem]:
    """What keeps a network whose output for one example has ``shape`` from being judged by the targets."""
    if dataset.loss == "mean_squared_error":
        return value_problems(tuple(dataset.targets.shape[1:]), shape, place)
    given = dataset.targets
    if dataset.loss == "causal_lm":
        if len(shape) != 2 or shape[0] != given.shape[1]:
            message = f"are token labels for {given.shape[1]} places, but the network gives outputs {list(shape)}"
            message += " an example, not one row of token scores a place; correct the network or the data"
            return [Problem(f"{place}: labels", "dataset.wrong_output", message)]
        given = given[given != IGNORED]
        return target_problems(int(given.min()), int(given.max()), shape[-1], f"{place}: labels")
    if len(shape) != 1:
        message = f"are classes, but the network gives outputs {list(shape)} an example, not one row of class scores"
        message += "; correct the network, or give floating targets of the output's shape"
        return [Problem(f"{place}: targets", "dataset.wrong_output", message)]
    return target_problems(int(given.min()), int(given.max()), shape[-1], f"{place}: targets")
