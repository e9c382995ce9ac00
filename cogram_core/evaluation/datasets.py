"""Evaluation data: inputs with targets, read from a safetensors file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.checkpoints.torch_dtypes import DTYPE_NAMES
from cogram_core.errors import DatasetError, Problem
from cogram_core.evaluation.losses import LossKind, predicted_tokens
from cogram_core.evaluation.texts import Texts, arranged, packed
from cogram_core.evaluation.tokenizing import Tokenizer
from cogram_core.networks.tokens import Tokens
from cogram_core.preflight.data import (
    IGNORED,
    MASK,
    PLAIN,
    TEXTS,
    TOKENS,
    TYPES,
    Names,
    check_dataset_header,
    target_problems,
    tensor_problems,
    token_problems,
    value_problems,
)
from cogram_core.preflight.rows import kind_of


@dataclass(frozen=True)
class Dataset:
    """Examples to evaluate on.

    ``inputs`` has shape (N, ...), in the compute dtype, or int64 where the network takes token ids, negative where one is
    padding (see ``networks.packing``). ``targets`` decides
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

    @property
    def holds_tokens(self) -> bool:
        """Whether the inputs are token ids."""
        return not self.inputs.is_floating_point()

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


def read_dataset(
    path: Path,
    dtype: torch.dtype,
    place: str | None = None,
    tokens: Tokens | None = None,
    tokenizer: Tokenizer | None = None,
) -> Dataset:
    """The dataset in a safetensors file: ``inputs`` and ``targets``, or ``input_ids`` or ``pixel_values`` and ``labels``.

    Errors name ``place``, by default the path. For ``dtype`` and ``tokens`` see ``make_dataset``; ``input_ids`` are
    always tokens. A file of texts is read with the ``tokenizer``.

    Raises:
        CheckpointError: if the file is not valid safetensors.
        DatasetError: if tensors are missing or don't fit together.
    """
    place = place or str(path)
    if kind_of(path) != "safetensors":
        if tokens is None or tokenizer is None or not tokens.packed:
            message = "holds texts, and this network reads none; give numbers or token ids"
            raise DatasetError([Problem(place, "dataset.texts_without_tokenizer", message)])
        return make_text_dataset(tokenizer.read(path, place), dtype, place, tokens, TEXTS)
    header = read_checkpoint_header(path)
    names = check_dataset_header(header, place)
    if names == TOKENS and tokens is None:
        tokens = Tokens(None)
    with CheckpointReader(header) as reader:
        inputs, targets = reader.read(names.inputs), reader.read(names.targets)
        beside = (reader.read(name) if names == TOKENS and name in header.tensors else None for name in (MASK, TYPES))
        if tokens is None or not tokens.packed or inputs.is_floating_point() or inputs.ndim != 2:
            return make_dataset(inputs, targets, dtype, place, tokens, names)
        return make_text_dataset(Texts(inputs, targets, *beside), dtype, place, tokens, names)


def make_text_dataset(texts: Texts, dtype: torch.dtype, place: str, tokens: Tokens, names: Names = TOKENS) -> Dataset:
    """The dataset of texts for a network of packed tokens; the other arguments and errors as for ``make_dataset``."""
    given = arranged(texts, tokens, f"{place}: {names.inputs}")
    made = make_dataset(given.ids, given.targets, dtype, place, tokens, names)
    return Dataset(packed(given), made.targets, made.weights)


def make_dataset(
    inputs: Tensor, targets: Tensor, dtype: torch.dtype, place: str, tokens: Tokens | None = None, names: Names = PLAIN
) -> Dataset:
    """A dataset from tensors.

    Args:
        inputs: numbers of any type, shape (N, ...).
        targets: integers (N,), the classes; floating numbers (N, ...), the values; or integers (N, T), the labels of
            integer inputs (N, T), at the same places, −100 where nothing is to be predicted.
        dtype: what inputs that are no tokens, and values, are converted to.
        place: what errors name.
        tokens: given where the network takes token ids: integer inputs then stay integers.
        names: what errors call the two tensors.

    Raises:
        DatasetError: listing everything that doesn't fit.
    """
    if not all(isinstance(tensor, Tensor) for tensor in (inputs, targets)):
        message = "must be a pair of torch tensors, inputs and targets; convert them with torch.as_tensor"
        raise DatasetError([Problem(place, "dataset.not_tensors", message)])
    types = [DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)) for tensor in (inputs, targets)]
    problems = tensor_problems(types[0], tuple(inputs.shape), types[1], tuple(targets.shape), place, names)
    if problems:
        raise DatasetError(problems)
    made = Dataset(
        inputs.to(dtype if tokens is None else torch.int64),
        targets.to(dtype if targets.is_floating_point() else torch.int64),
    )
    if tokens is None:
        problems += _not_finite(made.inputs, f"{place}: {names.inputs}")
    else:
        problems += _token_problems(inputs, tokens, f"{place}: {names.inputs}")
    if made.loss == "mean_squared_error":
        problems += _not_finite(made.targets, f"{place}: {names.targets}")
    if made.loss == "causal_lm":
        problems += _label_problems(made.targets, f"{place}: {names.targets}")
    if problems:
        raise DatasetError(problems)
    return made


def _not_finite(tensor: Tensor, place: str) -> list[Problem]:
    if bool(torch.isfinite(tensor).all()):
        return []
    return [Problem(place, "dataset.not_finite", "holds NaN or infinity; take them out")]


def _token_problems(inputs: Tensor, tokens: Tokens, place: str) -> list[Problem]:
    if inputs.is_floating_point():
        message = "are floating numbers, but the network begins with an embedding, which takes token ids; give integers"
        return [Problem(place, "dataset.invalid_inputs", message)]
    ids = inputs.to(torch.int64)
    if tokens.vocabulary is None or ids.numel() == 0:
        return []
    return token_problems(int(ids.min()), int(ids.max()), tokens.vocabulary, place)


def _label_problems(labels: Tensor, place: str) -> list[Problem]:
    silent = torch.nonzero(predicted_tokens(labels) == 0)[:, 0].tolist()
    if not silent:
        return []
    shown = ", ".join(map(str, silent[:8])) + (", …" if len(silent) > 8 else "")
    message = f"predict no token in {len(silent)} examples ({shown}): all labels but the first are −100; take them out"
    return [Problem(place, "dataset.nothing_predicted", message)]


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
