"""What a checkpoint's headers say: its tensors, their places, and the limits they keep. Free of torch and numpy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from cogram_core.errors import CheckpointError, Problem

HEADER_LIMIT = 16 * 1024 * 1024
INDEX_LIMIT = 32 * 1024 * 1024
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 8
MAX_NAME_LENGTH = 512
MAX_COUNT = 2**63 - 1
LENGTH_BYTES = 8
METADATA_KEY = "__metadata__"
MAX_LISTED = 50


@dataclass(frozen=True, slots=True)
class ElementType:
    """One safetensors dtype: bytes of an element, and whether it is a floating point number."""

    size: int
    floating: bool


DTYPES: Mapping[str, ElementType] = MappingProxyType(
    {
        # In the safetensors library's order (alignment ascending), which also orders the tensors inside a file.
        "BOOL": ElementType(1, floating=False),
        "U8": ElementType(1, floating=False),
        "I8": ElementType(1, floating=False),
        "F8_E5M2": ElementType(1, floating=True),
        "F8_E4M3": ElementType(1, floating=True),
        "I16": ElementType(2, floating=False),
        "U16": ElementType(2, floating=False),
        "F16": ElementType(2, floating=True),
        "BF16": ElementType(2, floating=True),
        "I32": ElementType(4, floating=False),
        "U32": ElementType(4, floating=False),
        "F32": ElementType(4, floating=True),
        "F64": ElementType(8, floating=True),
        "I64": ElementType(8, floating=False),
        "U64": ElementType(8, floating=False),
    }
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: ``begin`` and ``end`` count from the start of the file's data section, which is at ``data_start``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int
    data_start: int

    @property
    def nbytes(self) -> int:
        """Bytes the tensor takes, in the file and in memory."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def floating(self) -> bool:
        """Whether its numbers can be averaged."""
        return DTYPES[self.dtype].floating


@dataclass(frozen=True, slots=True)
class FileHeader:
    """One safetensors file: ``name`` inside the checkpoint, its tensors in the order of their data."""

    name: str
    path: Path
    size: int
    data_start: int
    tensors: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CheckpointHeader:
    """All tensors of a checkpoint, in the order of their names, and the files they lie in, in the order of theirs."""

    tensors: Mapping[str, TensorSpec]
    files: tuple[FileHeader, ...]

    @property
    def parameters(self) -> int:
        """Numbers in floating point tensors; integer and bool tensors are counters, indices and masks, never fused."""
        return sum(spec.elements for spec in self.tensors.values() if spec.floating)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(spec.nbytes for spec in self.tensors.values())

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes that occur, sorted."""
        return tuple(sorted({spec.dtype for spec in self.tensors.values()}))


class Problems:
    """All that is wrong with a checkpoint: the first ones listed, the rest counted, so a hostile file stays cheap."""

    def __init__(self) -> None:
        self._listed: list[Problem] = []
        self.count = 0

    def add(self, location: str, code: str, message: str) -> None:
        """Note one problem."""
        self.count += 1
        if len(self._listed) < MAX_LISTED:
            self._listed.append(Problem(location, f"checkpoint.{code}", message))

    def raise_if_any(self) -> None:
        """One CheckpointError with everything noted so far."""
        if not self.count:
            return
        more = self.count - len(self._listed)
        if more:
            text = f"{more} more problems of this checkpoint are not listed; repair those above first"
            self._listed.append(Problem(self._listed[-1].location.partition(": ")[0], "checkpoint.more_problems", text))
        raise CheckpointError(self._listed)


def shown(text: str) -> str:
    """A name from a file as it may stand in a message: escaped where it isn't printable, and cut where it is long."""
    visible = text[:80] if text[:80].isprintable() else ascii(text[:80])[1:-1]
    return f"{visible}…" if len(text) > 80 else visible


def name_fault(name: str) -> str | None:
    """Why a tensor can't be called so, or None.

    A name like ``../x`` is legal: a name is a key and is never used as a path.
    """
    if not name:
        return "a tensor's name is empty; give it one"
    if len(name) > MAX_NAME_LENGTH:
        return f"the name has {len(name)} characters, more than {MAX_NAME_LENGTH}; shorten it"
    if not name.isprintable():
        return "the name has characters that can't be printed (control characters, NUL); rename the tensor"
    return None


def span_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes that strides reach over: a zero counts as one, for an empty tensor has strides that must fit as well."""
    return math.prod(max(size, 1) for size in shape) * DTYPES[dtype].size
