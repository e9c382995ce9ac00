"""The strict, limited header reader: what a checkpoint holds, found before any library sees a byte of it.

Free of torch and numpy. Everything that is wrong is listed in one CheckpointError; nothing beyond the headers is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cogram_core.checkpoints.parsing import is_pickle_name, parse_file, read_file_header
from cogram_core.checkpoints.shards import compare_with_index, gather_tensors, locate_files
from cogram_core.checkpoints.specs import (
    DTYPES,
    MAX_TENSORS,
    CheckpointHeader,
    ElementType,
    FileHeader,
    Problems,
    TensorSpec,
)

__all__ = [
    "DTYPES",
    "CheckpointHeader",
    "ElementType",
    "FileHeader",
    "TensorSpec",
    "is_pickle_name",
    "read_checkpoint_header",
    "read_file_header",
]


def read_checkpoint_header(location: Path | Mapping[str, Path]) -> CheckpointHeader:
    """All headers of a checkpoint, checked alone and against each other.

    Args:
        location: one safetensors file; a folder with ``model.safetensors``, or an index and its shards, or exactly one
            safetensors file; or the paths inside such a folder, each with the real file that holds it.

    Raises:
        CheckpointError: with every problem found, of all files together.
    """
    problems = Problems()
    found = locate_files(location, problems)
    files = []
    for name, path in sorted(found.shards.items()):
        header = parse_file(path, name=name, label=found.label(name), problems=problems)
        if header is not None:
            files.append(header)
    problems.raise_if_any()
    tensors = gather_tensors(files, found.label, problems)
    compare_with_index(found, files, problems)
    _check_count(tensors, location, problems)
    problems.raise_if_any()
    return CheckpointHeader(tensors=tensors, files=tuple(files))


def _check_count(tensors: Mapping[str, TensorSpec], location: Path | Mapping[str, Path], problems: Problems) -> None:
    place = str(location) if isinstance(location, Path) else "checkpoint"
    if not tensors:
        problems.add(place, "empty", "holds no tensor; give a checkpoint with at least one")
    if len(tensors) > MAX_TENSORS:
        problems.add(place, "too_many_tensors", f"holds {len(tensors)} tensors, more than {MAX_TENSORS}")
