"""Writes a checkpoint tensor by tensor: every header is known before the first byte, every tensor has its place.

The same layout and tensors give the same bytes, in whatever order they are written, and the bytes that the safetensors
library gives for the same tensors and metadata.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from cogram_core.checkpoints.shards import INDEX_FILE, SINGLE_FILE
from cogram_core.checkpoints.specs import (
    DTYPES,
    HEADER_LIMIT,
    LENGTH_BYTES,
    MAX_COUNT,
    MAX_DIMENSIONS,
    MAX_TENSORS,
    METADATA_KEY,
    TensorSpec,
    name_fault,
    shown,
    span_bytes,
)
from cogram_core.checkpoints.torch_dtypes import DTYPE_NAMES
from cogram_core.errors import OutputError

_DTYPE_ORDER = {name: place for place, name in enumerate(DTYPES)}
_LISTED = 8


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """What a tensor of the output will be: its name, its safetensors dtype (``F32``), its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes its data takes."""
        return math.prod(self.shape) * DTYPES[self.dtype].size


class CheckpointWriter:
    """Writes one checkpoint into an existing folder; use it in a ``with`` block and call ``finish`` at its end.

    Args:
        folder: where the files go; none of them may exist.
        layout: every tensor that will be written.
        max_shard_bytes: most tensor bytes in one file, None for a single file; a larger tensor gets a file of its own.
        metadata: strings for the header of every file.

    Raises:
        OutputError: the layout can't be written as safetensors, or the folder can't be written.
    """

    def __init__(
        self,
        folder: Path,
        layout: Sequence[TensorLayout],
        *,
        max_shard_bytes: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        _check_layout(layout)
        self.folder = folder
        self._descriptors: dict[Path, int] = {}
        self._specs: dict[str, TensorSpec] = {}
        self._written: set[str] = set()
        self._left: dict[Path, int] = {}  # tensors that each file still waits for
        shards = _split(sorted(layout, key=lambda tensor: tensor.name), max_shard_bytes)
        names = _file_names(len(shards))
        headers = [_header(shard, metadata or {}) for shard in shards]
        self._index = _index(dict(zip(names, shards, strict=True))) if len(shards) > 1 else None
        self.files: tuple[str, ...] = (*names, INDEX_FILE) if self._index is not None else names
        try:
            for name, shard, header in zip(names, shards, headers, strict=True):
                self._begin_file(folder / name, shard, header)
        except BaseException:
            self.close()
            raise

    def write(self, name: str, tensor: Tensor) -> None:
        """Put one tensor in its place; order doesn't matter.

        Raises:
            OutputError: no such tensor in the layout, written before, another dtype or shape, or the disk is full.
        """
        spec = self._specs.get(name)
        if spec is None:
            raise OutputError(f"{self.folder}: tensor {shown(name)} is not in the layout; list it before writing")
        if name in self._written:
            raise OutputError(f"{self.folder}: tensor {shown(name)} is written already; write each tensor once")
        given = (DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
        if given != (spec.dtype, spec.shape):
            text = f"is {given[0]} {list(given[1])}, the layout says {spec.dtype} {list(spec.shape)}"
            raise OutputError(f"{self.folder}: tensor {shown(name)} {text}; convert it first")
        dense = tensor.detach().cpu().contiguous()
        # Tensors of no or one element count as contiguous whatever their strides, and odd strides can't be viewed as bytes.
        flat = dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)
        self._put(spec.file, flat.numpy().data, spec.data_start + spec.begin)
        self._written.add(name)
        self._left[spec.file] -= 1
        if not self._left[spec.file]:
            self._end_file(spec.file)

    def finish(self) -> tuple[str, ...]:
        """Flush everything to the disk and close; returns the names of the files, the index included.

        Raises:
            OutputError: tensors are missing, or the disk refuses.
        """
        missing = sorted(self._specs.keys() - self._written)
        if missing:
            more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            names = ", ".join(shown(name) for name in missing[:_LISTED])
            raise OutputError(f"{self.folder}: {names}{more} not written; write every tensor of the layout")
        if self._index is not None:
            self._create(self.folder / INDEX_FILE, len(self._index))
            self._put(self.folder / INDEX_FILE, memoryview(self._index), 0)
            self._end_file(self.folder / INDEX_FILE)
        return self.files

    def close(self) -> None:
        """Close all files, finished or not."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin_file(self, path: Path, shard: Sequence[TensorLayout], header: bytes) -> None:
        begin = 0
        for tensor in shard:
            end = begin + tensor.nbytes
            self._specs[tensor.name] = TensorSpec(
                tensor.name, tensor.dtype, tensor.shape, path, begin, end, len(header)
            )
            begin = end
        self._left[path] = len(shard)
        self._create(path, len(header) + begin)
        self._put(path, memoryview(header), 0)
        # Open only while its tensors come: thousands of shards are more files than a process may hold.
        os.close(self._descriptors.pop(path))

    def _create(self, path: Path, size: int) -> None:
        try:
            self._descriptors[path] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            os.ftruncate(self._descriptors[path], size)
        except OSError as error:
            raise _refused(path, error) from error

    def _put(self, path: Path, data: memoryview, position: int) -> None:
        try:
            if path not in self._descriptors:
                self._descriptors[path] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            while data:
                count = os.pwrite(self._descriptors[path], data, position)
                data = data[count:]
                position += count
        except OSError as error:
            raise _refused(path, error) from error

    def _end_file(self, path: Path) -> None:
        """Everything of it is written: to the disk, and closed."""
        try:
            os.fsync(self._descriptors[path])
        except OSError as error:
            raise _refused(path, error) from error
        os.close(self._descriptors.pop(path))


def _refused(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path}: can't be written ({error.strerror}); check that the folder exists and has room")


def _check_layout(layout: Sequence[TensorLayout]) -> None:
    """Nothing is written that the strict reader would refuse."""
    seen: set[str] = set()
    for tensor in layout:
        fault = "this name is reserved; rename the tensor" if tensor.name == METADATA_KEY else name_fault(tensor.name)
        if tensor.name in seen:
            fault = "two tensors have this name; rename one"
        elif tensor.dtype not in DTYPES:
            fault = f"dtype {shown(tensor.dtype)} can't be stored; convert it to one of {', '.join(DTYPES)}"
        elif len(tensor.shape) > MAX_DIMENSIONS:
            fault = f"it has {len(tensor.shape)} dimensions, more than {MAX_DIMENSIONS}; reshape it"
        elif min(tensor.shape, default=0) < 0 or span_bytes(tensor.shape, tensor.dtype) > MAX_COUNT:
            fault = f"its shape {list(tensor.shape)} can't be stored; dimensions are counts from 0"
        if fault is not None:
            raise OutputError(f"tensor {shown(tensor.name)}: {fault}")
        seen.add(tensor.name)
    if not 0 < len(layout) <= MAX_TENSORS:
        raise OutputError(f"a checkpoint of {len(layout)} tensors can't be written; 1 to {MAX_TENSORS} can")


def _split(layout: Sequence[TensorLayout], max_shard_bytes: int | None) -> list[list[TensorLayout]]:
    """Shards filled in the order of names; inside each, as the safetensors library: alignment descending, then name."""
    if max_shard_bytes is not None and max_shard_bytes <= 0:
        raise OutputError(f"shards of {max_shard_bytes} bytes can't hold a tensor; allow at least 1")
    shards: list[list[TensorLayout]] = [[]]
    room = max_shard_bytes
    for tensor in layout:
        if room is not None and max_shard_bytes is not None:
            if tensor.nbytes > room and shards[-1]:
                shards.append([])
                room = max_shard_bytes
            room -= tensor.nbytes
        shards[-1].append(tensor)
    return [sorted(shard, key=lambda tensor: (-_DTYPE_ORDER[tensor.dtype], tensor.name)) for shard in shards]


def _file_names(count: int) -> tuple[str, ...]:
    """As Hugging Face names them."""
    if count == 1:
        return (SINGLE_FILE,)
    return tuple(f"model-{place:05d}-of-{count:05d}.safetensors" for place in range(1, count + 1))


def _header(shard: Sequence[TensorLayout], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces to 8 bytes so that the data is aligned."""
    document: dict[str, object] = {METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    begin = 0
    for tensor in shard:
        end = begin + tensor.nbytes
        document[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    try:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise OutputError("metadata with half of a surrogate pair can't be stored; give Unicode text") from error
    text += b" " * (-len(text) % LENGTH_BYTES)
    if len(text) > HEADER_LIMIT:
        raise OutputError(f"a header of {len(text)} bytes, more than {HEADER_LIMIT}; allow smaller shards")
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _index(shards: Mapping[str, Sequence[TensorLayout]]) -> bytes:
    """As Hugging Face writes it."""
    weight_map = {tensor.name: file for file, shard in shards.items() for tensor in shard}
    total = sum(tensor.nbytes for shard in shards.values() for tensor in shard)
    document = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
