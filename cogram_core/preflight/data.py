"""What a dataset's file holds, found without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from cogram_core.checkpoints.header import DTYPES, CheckpointHeader, TensorSpec, read_checkpoint_header
from cogram_core.errors import DatasetError, Problem
from cogram_core.preflight.parquet import read_parquet_facts
from cogram_core.preflight.rows import LABELS, TEXT, kind_of, label_range, read_lines

LossKind = Literal["cross_entropy", "mean_squared_error", "causal_lm"]
IGNORED = -100
"""The label of a token that is not to be predicted."""
# struct's letters for the integer types that a class or a token may have.
_INTEGERS: Mapping[str, Literal["B", "b", "h", "H", "i", "I", "q"]] = {
    "U8": "B",
    "I8": "b",
    "I16": "h",
    "U16": "H",
    "I32": "i",
    "U32": "I",
    "I64": "q",
}
_CHUNK = 2**20
TEXT_SHAPE = (0,)
"""The shape of an input that is a text."""
MASK = "attention_mask"
TYPES = "token_type_ids"


class Names(NamedTuple):
    """What the two tensors of a dataset are called."""

    inputs: str = "inputs"
    targets: str = "targets"


PLAIN = Names()
TOKENS = Names("input_ids", "labels")
"""The names in a file of token data."""
PIXELS = Names("pixel_values", "labels")
"""The names in a file of images, as the transformers library has them."""
TEXTS = Names("text", "label")
"""The columns of a file of texts."""
_KINDS = "a dataset has inputs and targets, or input_ids and labels, or pixel_values and labels"


@dataclass(frozen=True)
class DatasetFacts:
    """How many examples, the shape of one input, the range of the targets, and what the targets and inputs are.

    ``target_min`` and ``target_max`` are None where targets are values and not classes or tokens; ``token_min`` and
    ``token_max`` are the range of ``input_ids``, None where the inputs are something else; ``padded`` says that a mask has
    places that don't count.
    """

    examples: int
    input_shape: tuple[int, ...]
    target_min: int | None
    target_max: int | None
    loss: LossKind = "cross_entropy"
    target_shape: tuple[int, ...] = ()
    token_min: int | None = None
    token_max: int | None = None
    padded: bool = False

    @property
    def holds_texts(self) -> bool:
        """Whether the inputs are texts, which are as long as a tokenizer makes them."""
        return self.input_shape == TEXT_SHAPE


def read_dataset_facts(path: Path) -> DatasetFacts:
    """The facts of a safetensors file of ``inputs`` and ``targets``, or of ``input_ids`` or ``pixel_values`` and ``labels``.

    Inputs other than tokens are not read. Or those of a file of texts: JSON lines, or Parquet, of which the footer is read
    alone; then the range of classes isn't known.

    Raises:
        CheckpointError: if the file is not valid safetensors.
        DatasetError: listing everything that keeps it from being a dataset.
    """
    if (kind := kind_of(path)) != "safetensors":
        return _facts_of_lines(path) if kind == "lines" else _facts_of_parquet(path)
    header = read_checkpoint_header(path)
    names = check_dataset_header(header, path.name)
    inputs, targets = header.tensors[names.inputs], header.tensors[names.targets]
    loss = loss_of(targets.dtype, targets.shape)
    ends: list[int | None] = [None, None]
    if loss != "mean_squared_error":
        ends = [*_range(targets, IGNORED if loss == "causal_lm" else None)]
    if None in ends and loss == "causal_lm":
        message = f"are all {IGNORED}, so that no token is predicted; give the tokens themselves"
        raise DatasetError([Problem(f"{path.name}: {names.targets}", "dataset.invalid_targets", message)])
    low, high = _range(inputs) if names == TOKENS else (None, None)
    padded = names == TOKENS and MASK in header.tensors and _range(header.tensors[MASK]) != (1, 1)
    return DatasetFacts(inputs.shape[0], inputs.shape[1:], ends[0], ends[1], loss, targets.shape[1:], low, high, padded)


def _facts_of_lines(path: Path) -> DatasetFacts:
    rows = read_lines(path, path.name)
    low, high, values = label_range(row.label for row in rows)
    if values:
        return DatasetFacts(len(rows), TEXT_SHAPE, None, None, "mean_squared_error")
    return DatasetFacts(len(rows), TEXT_SHAPE, low, high, "causal_lm" if low is None else "cross_entropy")


def _facts_of_parquet(path: Path) -> DatasetFacts:
    found = read_parquet_facts(path, path.name)
    problems = []
    if TEXT not in found.columns:
        problems.append(Problem(path.name, "dataset.missing_column", f"has no column {TEXT!r}; add the texts"))
    if found.rows == 0:
        problems.append(Problem(path.name, "dataset.empty", "holds no row; give one a text"))
    labels = [found.columns[name] for name in LABELS if name in found.columns]
    if len(labels) > 1 or "other" in labels:
        message = "has both label and labels, or labels that are no numbers; give one column of classes or values"
        problems.append(Problem(path.name, "dataset.invalid_targets", message))
    if problems:
        raise DatasetError(problems)
    losses: dict[str, LossKind] = {"integer": "cross_entropy", "floating": "mean_squared_error"}
    return DatasetFacts(found.rows, TEXT_SHAPE, None, None, losses[labels[0]] if labels else "causal_lm")


def check_dataset_header(header: CheckpointHeader, place: str) -> Names:
    """Checks that a safetensors file is a dataset, as far as its header tells.

    Returns:
        The names of its two tensors.

    Raises:
        DatasetError: listing everything that keeps it from being one.
    """
    names = _names_in(header, place)
    missing = [name for name in names if name not in header.tensors]
    if missing:
        raise DatasetError(
            Problem(place, "dataset.missing_tensor", f"has no tensor {name!r}; {_KINDS}") for name in missing
        )
    inputs, targets = header.tensors[names.inputs], header.tensors[names.targets]
    any_length = names == TOKENS  # a network may read one text and tell another
    problems = tensor_problems(inputs.dtype, inputs.shape, targets.dtype, targets.shape, place, names, any_length)
    for beside in (MASK, TYPES):
        if names == TOKENS and beside in header.tensors and not problems:
            problems += _beside_problems(header.tensors[beside], inputs.shape, f"{place}: {beside}")
    if problems:
        raise DatasetError(problems)
    return names


def _names_in(header: CheckpointHeader, place: str) -> Names:
    """Which of the names a file uses; those of pixels and tokens share that of their labels."""
    given = [names for names in (PLAIN, TOKENS, PIXELS) if names.inputs in header.tensors]
    if not given:
        given = [names for names in (PLAIN, TOKENS) if names.targets in header.tensors]
    others = {name for names in (PLAIN, TOKENS, PIXELS) for name in names} - {
        name for names in given[:1] for name in names
    }
    if any(name in header.tensors for name in others) and given:
        raise DatasetError([Problem(place, "dataset.ambiguous", f"holds tensors of several kinds; {_KINDS}")])
    return given[0] if given else PLAIN


def loss_of(dtype: str, shape: tuple[int, ...]) -> LossKind:
    """The loss that targets of this safetensors dtype and shape (N, ...) ask for."""
    if DTYPES[dtype].floating:
        return "mean_squared_error"
    return "cross_entropy" if len(shape) == 1 else "causal_lm"


def tensor_problems(
    input_dtype: str,
    input_shape: tuple[int, ...],
    target_dtype: str,
    target_shape: tuple[int, ...],
    place: str,
    names: Names = PLAIN,
    any_length: bool = False,
) -> list[Problem]:
    """Everything that keeps two tensors, by safetensors dtype and shape, from being inputs and targets.

    ``any_length`` says that labels of tokens may be of another text, which has its own length.
    """
    problems = []
    if (remedy := _target_remedy(input_dtype, input_shape, target_dtype, target_shape, any_length)) is not None:
        message = "must be one integer class an example, shape [N]; or floating values, [N, ...]; or integer labels of "
        message += f"integer tokens, [N, T]; here {target_dtype} {list(target_shape)}; {remedy}"
        problems.append(Problem(f"{place}: {names.targets}", "dataset.invalid_targets", message))
    here = f"here {input_dtype} {list(input_shape)}"
    if names == TOKENS and (input_dtype not in _INTEGERS or len(input_shape) != 2):
        message = f"must be integers of shape [N, T]; {here}"
        problems.append(Problem(f"{place}: {names.inputs}", "dataset.invalid_inputs", message))
    elif input_dtype == "BOOL" or len(input_shape) < 2:
        message = f"must be numbers of shape [N, ...]; {here}"
        problems.append(Problem(f"{place}: {names.inputs}", "dataset.invalid_inputs", message))
    elif input_shape[:1] != target_shape[:1] or input_shape[0] == 0:
        counts = f"{names.inputs} {list(input_shape[:1])} and {names.targets} {list(target_shape[:1])}"
        message = f"{counts} differ in length or are empty; there must be one target an input"
        problems.append(Problem(place, "dataset.length_mismatch", message))
    return problems


def _target_remedy(
    input_dtype: str, input_shape: tuple[int, ...], target_dtype: str, target_shape: tuple[int, ...], any_length: bool
) -> str | None:
    """What to do about targets that are none, or None where they are good."""
    if target_dtype in DTYPES and DTYPES[target_dtype].floating:
        return None if target_shape and 0 not in target_shape[1:] else "give one or more values an example"
    if target_dtype not in _INTEGERS:
        return "convert them to integers"
    if len(target_shape) == 1:
        return None
    tokens = input_dtype in _INTEGERS and len(input_shape) == 2
    if not tokens or len(target_shape) != 2 or not (any_length or target_shape[1:] == input_shape[1:]):
        return "give one number an example"
    return None if target_shape[1] > 1 else "give sequences of two tokens or more"


def _beside_problems(beside: TensorSpec, shape: tuple[int, ...], place: str) -> list[Problem]:
    """What keeps a tensor from saying something of each token."""
    if beside.shape == shape and beside.dtype in {"BOOL", *_INTEGERS}:
        return []
    message = f"must be integers in the shape of the input_ids, {list(shape)}; here {beside.dtype} {list(beside.shape)}"
    code = "dataset.invalid_mask" if place.endswith(MASK) else "dataset.invalid_types"
    return [Problem(place, code, message)]


def target_problems(low: int, high: int, classes: int, place: str) -> list[Problem]:
    """The problem of targets from ``low`` to ``high`` that the network has no class for."""
    if low >= 0 and high < classes:
        return []
    message = f"reach from {low} to {high}, but the network has the classes 0 to {classes - 1}; correct the targets"
    return [Problem(place, "dataset.targets_outside_classes", message)]


def token_problems(low: int, high: int, vocabulary: int, place: str) -> list[Problem]:
    """The problem of token ids from ``low`` to ``high`` that an embedding of ``vocabulary`` rows has none for."""
    if low >= 0 and high < vocabulary:
        return []
    message = f"reach from {low} to {high}, but the network's embedding has the ids 0 to {vocabulary - 1}; correct them"
    return [Problem(place, "dataset.tokens_outside_vocabulary", message)]


def value_problems(values: tuple[int, ...], output: tuple[int, ...], place: str) -> list[Problem]:
    """The problem of floating targets whose shape is not the network's output's; a lone last 1 may be left out."""
    if (values or (1,)) == (output or (1,)):
        return []
    message = f"have shape {list(values)} an example, the network's outputs {list(output)}; give values of that shape"
    return [Problem(f"{place}: targets", "dataset.wrong_output", message)]


def _range(spec: TensorSpec, ignored: int | None = None) -> tuple[int, int] | tuple[None, None]:
    """Least and greatest value of an integer tensor but for the ignored one, in small pieces.

    The machine is little-endian, as the file is.
    """
    ends: list[int] = []
    left = spec.elements * DTYPES[spec.dtype].size
    with spec.file.open("rb") as file:
        file.seek(spec.data_start + spec.begin)
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise DatasetError([Problem(spec.file.name, "dataset.truncated", "ends early; copy the file again")])
            values = memoryview(chunk).cast(_INTEGERS.get(spec.dtype, "B"))  # a byte each for booleans
            kept = values if ignored is None else [value for value in values if value != ignored]
            ends += [min(kept), max(kept)] if len(kept) else []
            left -= len(chunk)
    return (min(ends), max(ends)) if ends else (None, None)
