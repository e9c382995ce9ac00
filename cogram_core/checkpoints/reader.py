"""Reads tensors one by one, each into memory of its own. Never a map: a mapped file cut short kills its process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from cogram_core.checkpoints.header import CheckpointHeader, FileHeader, TensorSpec, read_checkpoint_header
from cogram_core.checkpoints.opening import open_regular
from cogram_core.checkpoints.specs import shown
from cogram_core.checkpoints.strict_json import Malformed
from cogram_core.checkpoints.torch_dtypes import TORCH_DTYPES
from cogram_core.errors import CheckpointError
from cogram_core.stopping import stop_point

_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CheckpointDigest:
    """SHA-256 of each file by its name, and one of them all: that of the sorted lines ``hex  name``."""

    files: Mapping[str, str]
    combined: str


class CheckpointReader:
    """The tensors of a checkpoint, read when they are asked for; resident memory is what was read and not dropped.

    Files are opened at their first read and closed by ``close`` or the end of a ``with`` block. ``read`` may be called
    from several threads at once.
    """

    def __init__(self, header: CheckpointHeader) -> None:
        self.header = header
        self._files = {file.path: file for file in header.files}
        self._descriptors: dict[Path, int] = {}
        self._opening = Lock()

    @classmethod
    def open(cls, location: Path | Mapping[str, Path]) -> Self:
        """A reader of the checkpoint at ``location``, all headers checked; see ``read_checkpoint_header``."""
        return cls(read_checkpoint_header(location))

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, sorted."""
        return tuple(self.header.tensors)

    def spec(self, name: str) -> TensorSpec:
        """What the header says of one tensor.

        Raises:
            CheckpointError: there is no tensor of this name.
        """
        try:
            return self.header.tensors[name]
        except KeyError as error:
            text = f"the checkpoint has no tensor {shown(name)}; its tensors are {', '.join(self.names[:8])}, …"
            raise CheckpointError.single(shown(name), "checkpoint.unknown_tensor", text) from error

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """One tensor in its stored dtype, contiguous, in memory that nothing else shares.

        Args:
            name: the tensor's.
            rows: first and one behind the last of the entries of its first dimension to read; None: all.

        Raises:
            CheckpointError: the file became shorter or can't be read, or a bool is neither 0 nor 1.
        """
        spec = self.spec(name)
        file = self._files[spec.file]
        first, last = (0, 1) if rows is None else rows
        row_bytes = spec.nbytes if rows is None else spec.nbytes // max(1, spec.shape[0])
        buffer = torch.empty((last - first) * row_bytes, dtype=torch.uint8)
        self._fill(buffer.numpy().data, spec, file, first * row_bytes)
        if spec.dtype == "BOOL" and bool((buffer > 1).any()):
            text = "a bool has a byte that is neither 0 nor 1; write the file again"
            raise CheckpointError.single(f"{file.name}: {shown(name)}", "checkpoint.bool", text)
        return buffer.view(TORCH_DTYPES[spec.dtype]).reshape(
            spec.shape if rows is None else (last - first, *spec.shape[1:])
        )

    def digest(self) -> CheckpointDigest:
        """SHA-256 of every file, read in small pieces."""
        digests = {file.name: self._digest(file) for file in self.header.files}
        lines = sorted(f"{digest}  {name}\n" for name, digest in digests.items())
        return CheckpointDigest(digests, hashlib.sha256("".join(lines).encode()).hexdigest())

    def close(self) -> None:
        """Close all files; a later read opens them again."""
        with self._opening:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fill(self, target: memoryview, spec: TensorSpec, file: FileHeader, offset: int) -> None:
        position = spec.data_start + spec.begin + offset
        while target:
            count = self._read_at(file, target, position)
            if count == 0:
                text = f"the file ends inside this tensor, {len(target)} bytes early; copy the file again"
                raise CheckpointError.single(f"{file.name}: {shown(spec.name)}", "checkpoint.truncated", text)
            target = target[count:]
            position += count

    def _read_at(self, file: FileHeader, target: memoryview, position: int) -> int:
        try:
            return os.preadv(self._descriptor(file), [target], position)
        except OSError as error:
            text = f"can't be read ({error.strerror}); check that the file exists and may be read"
            raise CheckpointError.single(file.name, "checkpoint.unreadable", text) from error

    def _descriptor(self, file: FileHeader) -> int:
        with self._opening:
            descriptor = self._descriptors.get(file.path)
            if descriptor is None:
                descriptor = self._descriptors[file.path] = _open_unchanged(file)
            return descriptor

    def _digest(self, file: FileHeader) -> str:
        digest = hashlib.sha256()
        buffer = bytearray(min(_CHUNK, file.size))
        position = 0
        while position < file.size:
            stop_point()
            count = self._read_at(file, memoryview(buffer)[: file.size - position], position)
            if count == 0:
                text = f"the file ends at byte {position} of {file.size}; copy the file again"
                raise CheckpointError.single(file.name, "checkpoint.truncated", text)
            digest.update(memoryview(buffer)[:count])
            position += count
        return digest.hexdigest()


def _open_unchanged(file: FileHeader) -> int:
    try:
        descriptor, size = open_regular(file.path)
    except Malformed as error:
        raise CheckpointError.single(file.name, f"checkpoint.{error.code}", error.message) from error
    if size != file.size:
        os.close(descriptor)
        text = f"has {size} bytes, and had {file.size} when its header was read; leave it alone while it is in use"
        raise CheckpointError.single(file.name, "checkpoint.changed", text)
    return descriptor
