"""What a dataset's file holds, found without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cogram_core.checkpoints.header import DTYPES, CheckpointHeader, TensorSpec, read_checkpoint_header
from cogram_core.errors import DatasetError, Problem

# struct's letters for the integer types that a class may have.
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


@dataclass(frozen=True)
class DatasetFacts:
    """How many examples, the shape of one input, and the range of the targets."""

    examples: int
    input_shape: tuple[int, ...]
    target_min: int
    target_max: int


def read_dataset_facts(path: Path) -> DatasetFacts:
    """The facts of a safetensors file with ``inputs`` (N, ...) and ``targets`` (N,); reads the targets only.

    Raises:
        CheckpointError: if the file is not valid safetensors.
        DatasetError: listing everything that keeps it from being a dataset.
    """
    header = read_checkpoint_header(path)
    check_dataset_header(header, path.name)
    low, high = _range(header.tensors["targets"])
    shape = header.tensors["inputs"].shape
    return DatasetFacts(shape[0], shape[1:], low, high)


def check_dataset_header(header: CheckpointHeader, place: str) -> None:
    """Checks that a safetensors file is a dataset, as far as its header tells.

    Raises:
        DatasetError: listing everything that keeps it from being one.
    """
    missing = [name for name in ("inputs", "targets") if name not in header.tensors]
    if missing:
        raise DatasetError(
            Problem(place, "dataset.missing_tensor", f"has no tensor {name!r}; a dataset has inputs and targets")
            for name in missing
        )
    inputs, targets = header.tensors["inputs"], header.tensors["targets"]
    problems = tensor_problems(inputs.dtype, inputs.shape, targets.dtype, targets.shape, place)
    if problems:
        raise DatasetError(problems)


def tensor_problems(
    input_dtype: str, input_shape: tuple[int, ...], target_dtype: str, target_shape: tuple[int, ...], place: str
) -> list[Problem]:
    """Everything that keeps two tensors, by safetensors dtype and shape, from being inputs and targets."""
    problems = []
    if target_dtype not in _INTEGERS or len(target_shape) != 1:
        message = f"must be one integer class an example, shape [N]; here {target_dtype} {list(target_shape)}"
        message += "; convert them to integers" if target_dtype not in _INTEGERS else "; give one number an example"
        problems.append(Problem(f"{place}: targets", "dataset.invalid_targets", message))
    if input_dtype == "BOOL" or len(input_shape) < 2:
        message = f"must be numbers of shape [N, ...]; here {input_dtype} {list(input_shape)}"
        problems.append(Problem(f"{place}: inputs", "dataset.invalid_inputs", message))
    elif input_shape[:1] != target_shape[:1] or input_shape[0] == 0:
        counts = f"inputs {list(input_shape[:1])} and targets {list(target_shape[:1])}"
        message = f"{counts} differ in length or are empty; there must be one target an input"
        problems.append(Problem(place, "dataset.length_mismatch", message))
    return problems


def target_problems(low: int, high: int, classes: int, place: str) -> list[Problem]:
    """The problem of targets from ``low`` to ``high`` that the network has no class for."""
    if low >= 0 and high < classes:
        return []
    message = f"reach from {low} to {high}, but the network has the classes 0 to {classes - 1}; correct the targets"
    return [Problem(place, "dataset.targets_outside_classes", message)]


def value_problems(values: tuple[int, ...], output: tuple[int, ...], place: str) -> list[Problem]:
    """The problem of floating targets whose shape is not the network's output's; a lone last 1 may be left out."""
    if (values or (1,)) == (output or (1,)):
        return []
    message = f"have shape {list(values)} an example, the network's outputs {list(output)}; give values of that shape"
    return [Problem(f"{place}: targets", "dataset.wrong_output", message)]


def _range(spec: TensorSpec) -> tuple[int, int]:
    """Least and greatest value of an integer tensor, in small pieces; the machine is little-endian, as the file is."""
    ends: list[int] = []
    left = spec.elements * DTYPES[spec.dtype].size
    with spec.file.open("rb") as file:
        file.seek(spec.data_start + spec.begin)
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise DatasetError([Problem(spec.file.name, "dataset.truncated", "ends early; copy the file again")])
            values = memoryview(chunk).cast(_INTEGERS[spec.dtype])
            ends += [min(values), max(values)]
            left -= len(chunk)
    return min(ends), max(ends)
