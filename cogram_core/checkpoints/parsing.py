"""One safetensors file's header: read with every length checked first, parsed strictly, its data's layout checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cogram_core.checkpoints.opening import open_regular, read_exactly
from cogram_core.checkpoints.specs import (
    DTYPES,
    HEADER_LIMIT,
    LENGTH_BYTES,
    MAX_COUNT,
    MAX_DIMENSIONS,
    MAX_TENSORS,
    METADATA_KEY,
    FileHeader,
    Problems,
    TensorSpec,
    name_fault,
    shown,
    span_bytes,
)
from cogram_core.checkpoints.strict_json import Bounds, Malformed, RepeatedKeys, parse_json

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLE_ADVICE = (
    "it can run code when opened and is refused unread; load it where you trust it and write it with "
    "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
)
_ENTRY_KEYS = frozenset({"dtype", "shape", "data_offsets"})
# A file a little over the limit is to hear of its tensors, not of its brackets.
_ROOM = 1_000
_METADATA_STRINGS = 20_000
# The brackets are the header's, an entry's and its arrays'. With its name, a dtype and 3 keys an entry has 5 strings;
# with the one after it, 8 dimensions and 2 offsets it has 11 commas.
_BOUNDS = Bounds(
    depth=3,
    objects=MAX_TENSORS + _ROOM,
    arrays=2 * (MAX_TENSORS + _ROOM),
    strings=5 * (MAX_TENSORS + _ROOM) + _METADATA_STRINGS,
    commas=11 * (MAX_TENSORS + _ROOM) + _METADATA_STRINGS,
)


class _Entry(NamedTuple):
    """One tensor's entry in the header; None for what couldn't be understood."""

    name: str
    dtype: str | None
    shape: tuple[int, ...] | None
    offsets: tuple[int, int] | None


class _Report(Protocol):
    """Where the faults of one tensor go."""

    def __call__(self, code: str, message: str) -> None: ...


def is_pickle_name(name: str) -> bool:
    """Whether a file of this name is a pickle by custom; such files are refused, never opened."""
    return name.lower().endswith(PICKLE_SUFFIXES)


def read_file_header(path: Path, *, name: str | None = None) -> FileHeader:
    """The header of one safetensors file.

    Args:
        path: the file on disk.
        name: what the file is called inside its checkpoint, where that isn't its name on disk; also used in errors.

    Raises:
        CheckpointError: with every problem of the file.
    """
    problems = Problems()
    header = parse_file(path, name=name or path.name, label=name or str(path), problems=problems)
    problems.raise_if_any()
    assert header is not None
    return header


def parse_file(path: Path, *, name: str, label: str, problems: Problems) -> FileHeader | None:
    """The header of one file, or None with all that is wrong noted in ``problems`` under ``label``."""
    already = problems.count
    report = partial(problems.add, label)
    if is_pickle_name(name):
        report("pickle", f"is a pickle by its name: {PICKLE_ADVICE}")
        return None
    try:
        raw, size = _read_header_bytes(path)
        document = parse_json(raw, _BOUNDS)
    except Malformed as error:
        report(error.code, error.message)
        return None
    except OSError as error:
        report("unreadable", f"can't be read ({error.strerror}); check that the file exists and may be read")
        return None
    data_start = LENGTH_BYTES + len(raw)
    del raw
    metadata = _metadata(document, label, problems)
    entries = _entries(document, label, problems)
    _check_layout(entries, size - data_start, label, problems)
    if problems.count > already:
        return None
    return FileHeader(name, path, size, data_start, _specs(entries, path, data_start), metadata)


def _read_header_bytes(path: Path) -> tuple[bytes, int]:
    """The header's JSON and the size of the file; not one byte more is read than the limit allows."""
    descriptor, size = open_regular(path)
    try:
        start = read_exactly(descriptor, min(size, LENGTH_BYTES + 1))
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        plausible = length <= HEADER_LIMIT and start[LENGTH_BYTES:] == b"{"
        if not plausible and _starts_like_pickle(start):
            raise Malformed("pickle", f"is a pickle or zip archive by its first bytes: {PICKLE_ADVICE}")
        if size < LENGTH_BYTES:
            raise Malformed("truncated", f"has {size} bytes, too few for a safetensors file; copy it again")
        if length > HEADER_LIMIT:
            text = f"says its header has {length} bytes, more than {HEADER_LIMIT}; is it a safetensors file?"
            raise Malformed("header_too_large", text)
        if size < LENGTH_BYTES + length:
            text = f"has {size} bytes, but its header ends at {LENGTH_BYTES + length}; copy the file again"
            raise Malformed("truncated", text)
        if length == 0 or not plausible:
            raise Malformed("json", "has a header that doesn't start with '{'; write the file again")
        return start[LENGTH_BYTES:] + read_exactly(descriptor, length - 1), size
    finally:
        os.close(descriptor)


def _starts_like_pickle(start: bytes) -> bool:
    return start.startswith(b"PK") or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))


def _metadata(document: Mapping[str, Any], label: str, problems: Problems) -> Mapping[str, str]:
    metadata = document.get(METADATA_KEY, {})
    report = partial(problems.add, f"{label}: {METADATA_KEY}")
    if not isinstance(metadata, dict):
        report("metadata", "is no object of strings; write each value as a string")
        return {}
    for key in metadata.repeated if isinstance(metadata, RepeatedKeys) else ():
        report("duplicate_key", f"the key {shown(key)} occurs twice; keep one")
    for key, value in metadata.items():
        if not isinstance(value, str):
            report("metadata", f"the value of {shown(key)} is no string; write it as a string")
        elif not (_is_text(key) and _is_text(value)):
            report("metadata", f"{shown(key)} has half of a surrogate pair; write it as Unicode text")
    return metadata


def _is_text(value: str) -> bool:
    # Half of a surrogate pair passes the JSON parser and then can't be written to any file.
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _entries(document: Mapping[str, Any], label: str, problems: Problems) -> list[_Entry]:
    """Every tensor's entry, as far as it can be understood."""
    count = len(document) - (METADATA_KEY in document)
    if count > MAX_TENSORS:
        problems.add(label, "too_many_tensors", f"has {count} tensors, more than {MAX_TENSORS}; split the file")
        return []
    for name in document.repeated if isinstance(document, RepeatedKeys) else ():
        problems.add(f"{label}: {shown(name)}", "duplicate_key", "the name occurs twice in the header; keep one")
    return [
        _entry(name, value, partial(problems.add, f"{label}: {shown(name)}"))
        for name, value in document.items()
        if name != METADATA_KEY
    ]


def _entry(name: str, value: object, report: _Report) -> _Entry:
    """One tensor's entry, with every fault of it reported."""
    fault = name_fault(name)
    if fault is not None:
        report("name", fault)
    if not isinstance(value, dict):
        report("entry", "the entry is no object with dtype, shape and data_offsets; write the file again")
        return _Entry(name, None, None, None)
    for key in value.repeated if isinstance(value, RepeatedKeys) else ():
        report("duplicate_key", f"the key {shown(key)} occurs twice in the entry; keep one")
    if value.keys() != _ENTRY_KEYS:
        _report_keys(value, report)
    dtype = _dtype(value["dtype"], report) if "dtype" in value else None
    shape = _shape(value["shape"], report) if "shape" in value else None
    offsets = _offsets(value["data_offsets"], report) if "data_offsets" in value else None
    if dtype is not None and shape is not None and offsets is not None:
        expected = _count_bytes(shape, dtype, report)
        if expected is not None and offsets[1] - offsets[0] != expected:
            text = f"shape and dtype need {expected} bytes, data_offsets give {offsets[1] - offsets[0]}"
            report("size_mismatch", f"{text}; write the file again")
    return _Entry(name, dtype, shape, offsets)


def _report_keys(entry: Mapping[str, object], report: _Report) -> None:
    for key in sorted(_ENTRY_KEYS - entry.keys()):
        report("entry", f"the entry has no {key}; write the file again")
    for key in sorted(entry.keys() - _ENTRY_KEYS)[:MAX_DIMENSIONS]:
        report("entry", f"the entry has an unknown key {shown(key)}; remove it")


def _dtype(dtype: object, report: _Report) -> str | None:
    if not isinstance(dtype, str) or dtype not in DTYPES:
        given = shown(dtype) if isinstance(dtype, str) else "no string"
        report("dtype", f"the dtype is {given}; supported are {', '.join(DTYPES)}: convert the tensor to one of them")
        return None
    return dtype


def _shape(shape: object, report: _Report) -> tuple[int, ...] | None:
    if not isinstance(shape, list):
        report("shape", "the shape is no list of whole numbers; write the file again")
        return None
    if len(shape) > MAX_DIMENSIONS:
        text = f"the shape has {len(shape)} dimensions, more than {MAX_DIMENSIONS}; reshape the tensor"
        report("too_many_dimensions", text)
        return None
    if not all(_is_count(size) for size in shape):
        report("shape", f"every dimension has to be a whole number from 0 to {MAX_COUNT}; write the file again")
        return None
    return tuple(shape)


def _offsets(offsets: object, report: _Report) -> tuple[int, int] | None:
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(_is_count(offset) for offset in offsets)):
        report("offsets", f"data_offsets have to be two whole numbers from 0 to {MAX_COUNT}; write the file again")
        return None
    begin, end = offsets
    if begin > end:
        report("offsets", f"data_offsets end at {end}, before they begin at {begin}; write the file again")
        return None
    return begin, end


def _is_count(value: object) -> bool:
    # Not isinstance: True and False are ints to Python.
    return type(value) is int and 0 <= value <= MAX_COUNT


def _count_bytes(shape: tuple[int, ...], dtype: str, report: _Report) -> int | None:
    """Bytes of the tensor, or None when it can't be addressed."""
    span = span_bytes(shape, dtype)
    if span > MAX_COUNT:
        report("overflow", f"the shape spans more than {MAX_COUNT} bytes; write the file again")
        return None
    return 0 if 0 in shape else span


def _check_layout(entries: list[_Entry], data_size: int, label: str, problems: Problems) -> None:
    """The tensors, in the order of their data, lie end to end and fill the data section exactly."""
    placed = sorted((*entry.offsets, entry.name) for entry in entries if entry.offsets is not None)
    if len(placed) < len(entries):
        return  # what an unreadable entry would have covered isn't known
    filled = 0
    for begin, end, name in placed:
        if begin > filled:
            text = f"bytes {filled} to {begin} before it belong to no tensor; write the file again"
            problems.add(f"{label}: {shown(name)}", "hole", text)
        elif begin < filled:
            text = f"begins at {begin}, inside another tensor that ends at {filled}; write the file again"
            problems.add(f"{label}: {shown(name)}", "overlap", text)
        filled = max(filled, end)
    if filled > data_size:
        text = f"has {data_size} bytes of data, but its tensors need {filled}; copy the file again"
        problems.add(label, "truncated", text)
    elif filled < data_size:
        text = f"has {data_size - filled} bytes after its last tensor; write the file again"
        problems.add(label, "trailing_bytes", text)


def _specs(entries: list[_Entry], path: Path, data_start: int) -> tuple[TensorSpec, ...]:
    """The specs of faultless entries, in the order of their data."""
    specs = [
        TensorSpec(entry.name, entry.dtype, entry.shape, path, *entry.offsets, data_start)
        for entry in entries
        if entry.dtype is not None and entry.shape is not None and entry.offsets is not None
    ]
    return tuple(sorted(specs, key=lambda spec: (spec.begin, spec.end, spec.name)))
