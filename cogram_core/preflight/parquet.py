"""The footer of a Parquet file: its columns and how many rows; enough of Thrift's compact protocol, and no library.

Source: Apache Parquet format, FileMetaData; Apache Thrift compact protocol.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogram_core.errors import DatasetError, Problem

_MAGIC = b"PAR1"
_MAX_FOOTER = 2**26
_MAX_DEPTH, _MAX_VALUES = 16, 10**6
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 11, 12
_FLOATING = {4, 5}  # Parquet's types FLOAT and DOUBLE
_INTEGER = {1, 2}  # INT32, INT64


@dataclass(frozen=True)
class ParquetFacts:
    """How many rows, and the columns: ``integer``, ``floating`` or ``other``."""

    rows: int
    columns: dict[str, str]


class _BrokenError(Exception):
    """The footer is none."""


class _Reader:
    """Values of Thrift's compact protocol, one after the other, within bounds."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._left = _MAX_VALUES

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """A struct's fields by number."""
        found: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != _STOP:
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            found[number] = self._value(head & 15, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        self._left -= 1
        if depth > _MAX_DEPTH or self._left < 0:
            raise _BrokenError
        if kind in (_TRUE, _FALSE):
            return kind == _TRUE
        if kind == _BYTE:
            return self._byte()
        if kind < _DOUBLE:
            return self._zigzag()
        if kind == _DOUBLE:
            return self._take(8)
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in (_LIST, _SET):
            return list(self._items(depth))
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise _BrokenError  # a map: the footer has none

    def _items(self, depth: int) -> Iterator[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        for _ in range(count):
            # A list of booleans has a byte each.
            yield self._byte() == _TRUE if head & 15 in (_TRUE, _FALSE) else self._value(head & 15, depth + 1)

    def _byte(self) -> int:
        return self._take(1)[0]

    def _take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise _BrokenError
        self._at += count
        return part

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise _BrokenError

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)


def read_parquet_facts(path: Path, place: str) -> ParquetFacts:
    """What a Parquet file holds, by its footer.

    Raises:
        DatasetError: if it has none that can be read.
    """
    try:
        footer = _Reader(_footer(path)).struct()
        schema, rows = footer[2], footer[3]
        leaves = [entry for entry in schema[1:] if 1 in entry]
        columns = {entry[4].decode("utf-8"): _kind(entry[1]) for entry in leaves}
        count = int(rows)
    except (_BrokenError, ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError, IndexError) as error:
        message = "begins like a Parquet file, but its footer can't be read; write the file again"
        raise DatasetError([Problem(place, "dataset.invalid_parquet", message)]) from error
    return ParquetFacts(max(0, count), columns)


def _kind(number: int) -> str:
    return "integer" if number in _INTEGER else "floating" if number in _FLOATING else "other"


def _footer(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if len(tail) < 8 or tail[4:] != _MAGIC or length > min(size - 12, _MAX_FOOTER):
            raise _BrokenError
        file.seek(size - 8 - length)
        return file.read(length)
