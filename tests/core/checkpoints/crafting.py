"""Safetensors files made byte by byte, good and bad."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.errors import CheckpointError, Problem


def entry(dtype: str = "U8", shape: list[Any] | None = None, offsets: Any = None) -> dict[str, Any]:
    """An entry of one byte at the start of the data, unless told otherwise."""
    return {
        "dtype": dtype,
        "shape": [1] if shape is None else shape,
        "data_offsets": [0, 1] if offsets is None else offsets,
    }


def file_bytes(header: Mapping[str, Any] | str | bytes, data: bytes = b"\x01", length: int | None = None) -> bytes:
    """A file with this header, as an object or as raw JSON, in front of this data."""
    if isinstance(header, Mapping):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def good_bytes(name: str = "a") -> bytes:
    return file_bytes({name: entry()})


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def problems_of(action: Callable[[], object]) -> tuple[Problem, ...]:
    with pytest.raises(CheckpointError) as caught:
        action()
    return caught.value.problems


def problems_in(content: bytes, folder: Path) -> list[tuple[str, str]]:
    """Code and location of every problem of a file with this content, called model.safetensors in its checkpoint."""
    blob = folder / "blob"
    blob.write_bytes(content)
    problems = problems_of(lambda: read_checkpoint_header({"model.safetensors": blob}))
    assert all(problem.message for problem in problems)
    return [(problem.code.removeprefix("checkpoint."), problem.location) for problem in problems]
