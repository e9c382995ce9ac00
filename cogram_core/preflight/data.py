"""What a dataset's file holds, found without loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogram_core.checkpoints.header import DTYPES, CheckpointHeader, TensorSpec, read_checkpoint_header
from cogram_core.errors import DatasetError, Problem

# struct's letters for the integer types that a class may have.
_INTEGERS = {"U8": "B", "I8": "b", "I16": "h", "U16": "H", "I32": "i", "U32": "I", "I64": "q"}
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
    problems = dataset_problems(header, path.name)
    if problems:
        raise DatasetError(problems)
    low, high = _range(header.tensors["targets"])
    shape = header.tensors["inputs"].shape
    return DatasetFacts(shape[0], shape[1:], low, high)


def dataset_problems(header: CheckpointHeader, place: str) -> list[Problem]:
    """Everything that keeps a safetensors file from being a dataset."""
    missing = [name for name in ("inputs", "targets") if name not in header.tensors]
    if missing:
        return [
            Problem(place, "dataset.missing_tensor", f"has no tensor {name!r}; a dataset has inputs and targets")
            for name in missing
        ]
    inputs, targets = header.tensors["inputs"], header.tensors["targets"]
    problems = []
    if targets.dtype not in _INTEGERS or len(targets.shape) != 1:
        what = f"{targets.dtype} {list(targets.shape)}"
        message = f"must be one integer class an example, shape [N]; here {what}"
        problems.append(Problem(f"{place}: targets", "dataset.invalid_targets", message))
    if inputs.dtype == "BOOL" or len(inputs.shape) < 2:
        what = f"{inputs.dtype} {list(inputs.shape)}"
        problems.append(
            Problem(f"{place}: inputs", "dataset.invalid_inputs", f"must be numbers of shape [N, ...]; here {what}")
        )
    elif inputs.shape[0] != (targets.shape or (0,))[0] or inputs.shape[0] == 0:
        counts = f"{inputs.shape[0]} inputs and {(targets.shape or (0,))[0]} targets"
        message = f"{counts}; there must be as many, and at least one"
        problems.append(Problem(place, "dataset.length_mismatch", message))
    return problems


def _range(spec: TensorSpec) -> tuple[int, int]:
    """Least and greatest value of an integer tensor, in small pieces; the machine is little-endian, as the file is."""
    low, high = 2**63, -(2**63)
    left = spec.elements * DTYPES[spec.dtype].size
    with spec.file.open("rb") as file:
        file.seek(spec.data_start + spec.begin)
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise DatasetError([Problem(spec.file.name, "dataset.truncated", "ends early; copy the file again")])
            values = memoryview(chunk).cast(_INTEGERS[spec.dtype])
            low, high = min(low, *values, low), max(high, *values, high)
            left -= len(chunk)
    return low, high
