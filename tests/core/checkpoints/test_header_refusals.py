from __future__ import annotations

import io
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from cogram_core.checkpoints.header import DTYPES, read_checkpoint_header, read_file_header
from cogram_core.checkpoints.specs import HEADER_LIMIT, MAX_LISTED
from tests.core.checkpoints.crafting import entry, file_bytes, good_bytes, problems_in, problems_of

FILE = "model.safetensors"
A = f"{FILE}: a"


def raw_entry(text: str) -> str:
    """A header with one tensor ``a`` whose entry is this JSON."""
    return f'{{"a": {text}}}'


def shape_of(text: str) -> str:
    return raw_entry(f'{{"dtype": "U8", "shape": {text}, "data_offsets": [0, 1]}}')


def offsets_of(text: str) -> str:
    return raw_entry(f'{{"dtype": "U8", "shape": [1], "data_offsets": {text}}}')


HEADERS: dict[str, tuple[Any, list[tuple[str, str]]]] = {
    "two tensors of one name": (
        '{"a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}, "a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        [("duplicate_key", A)],
    ),
    "a key twice in an entry": (
        raw_entry('{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}'),
        [("duplicate_key", A)],
    ),
    "a key twice in an entry, once escaped": (
        raw_entry('{"dtype":"U8","\\u0064type":"U8","shape":[1],"data_offsets":[0,1]}'),
        [("duplicate_key", A)],
    ),
    "a metadata key twice": (
        '{"__metadata__": {"k": "1", "k": "2"}, "a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        [("duplicate_key", f"{FILE}: __metadata__")],
    ),
    "metadata twice": (
        '{"__metadata__": {}, "__metadata__": {}, "a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        [("duplicate_key", f"{FILE}: __metadata__")],
    ),
    "metadata that is a list": ({"__metadata__": [], "a": entry()}, [("metadata", f"{FILE}: __metadata__")]),
    "metadata that is null": ({"__metadata__": None, "a": entry()}, [("metadata", f"{FILE}: __metadata__")]),
    "a metadata value that is a number": (
        {"__metadata__": {"k": 1}, "a": entry()},
        [("metadata", f"{FILE}: __metadata__")],
    ),
    "a metadata value with half a surrogate pair": (
        '{"__metadata__": {"k": "\\ud800"}, "a": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        [("metadata", f"{FILE}: __metadata__")],
    ),
    "an empty name": ({"": entry()}, [("name", f"{FILE}: ")]),
    "a name of 513 characters": ({"n" * 513: entry()}, [("name", f"{FILE}: {'n' * 80}…")]),
    "a name with NUL": ({"../../x\0": entry()}, [("name", f"{FILE}: ../../x\\x00")]),
    "a name with a newline": ({"a\nb": entry()}, [("name", f"{FILE}: a\\nb")]),
    "a name that turns the reading direction": ({"a\u202eb": entry()}, [("name", f"{FILE}: a\\u202eb")]),
    "a name with half a surrogate pair": ('{"\\udcff": ' + json.dumps(entry()) + "}", [("name", f"{FILE}: \\udcff")]),
    "an unknown dtype": ({"a": entry("F128")}, [("dtype", A)]),
    "a dtype below one byte": ({"a": entry("F4", [2])}, [("dtype", A)]),
    "a dtype in small letters": ({"a": entry("u8")}, [("dtype", A)]),
    "a dtype that is a number": (raw_entry('{"dtype": 8, "shape": [1], "data_offsets": [0, 1]}'), [("dtype", A)]),
    "an entry that is a list": ({"a": [1]}, [("entry", A)]),
    "an entry without a shape": ({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, [("entry", A)]),
    "an entry without offsets": ({"a": {"dtype": "U8", "shape": [1]}}, [("entry", A)]),
    "an entry with an unknown key": ({"a": {**entry(), "stride": [1]}}, [("entry", A)]),
    "nine dimensions": ({"a": entry(shape=[1] * 9)}, [("too_many_dimensions", A)]),
    "a shape that is a number": (shape_of("1"), [("shape", A)]),
    "a negative dimension": (shape_of("[-1]"), [("shape", A)]),
    "a dimension of minus zero": (shape_of("[-0]"), [("shape", A)]),
    "a dimension that is a float": (shape_of("[1.0]"), [("shape", A)]),
    "a dimension that is infinite by size": (shape_of("[1e999]"), [("shape", A)]),
    "a dimension that is true": (shape_of("[true]"), [("shape", A)]),
    "a dimension that is text": (shape_of('["1"]'), [("shape", A)]),
    "a dimension that is null": (shape_of("[null]"), [("shape", A)]),
    "a dimension of 2**63": (shape_of(f"[{2**63}]"), [("shape", A)]),
    "a dimension of 2**64 + 1": (shape_of(f"[{2**64 + 1}]"), [("shape", A)]),
    "a dimension of 5000 digits": (shape_of("[" + "9" * 5000 + "]"), [("shape", A)]),
    "a shape whose product overflows to one": (shape_of(f"[{2**32 + 1}, {2**32 + 1}]"), [("overflow", A)]),
    "a shape whose bytes overflow": ({"a": entry("F64", [2**61], [0, 1])}, [("overflow", A)]),
    "a shape that overflows before it is zero": (
        {"a": entry(shape=[2**62, 2**62, 0], offsets=[0, 1])},
        [("overflow", A)],
    ),
    "a shape that overflows after it is zero": (
        {"a": entry(shape=[0, 2**62, 2**62], offsets=[0, 1])},
        [("overflow", A)],
    ),
    "offsets that are one number": (offsets_of("[1]"), [("offsets", A)]),
    "offsets that are three numbers": (offsets_of("[0, 1, 2]"), [("offsets", A)]),
    "offsets that are an object": (offsets_of("{}"), [("offsets", A)]),
    "a negative offset": (offsets_of("[-1, 0]"), [("offsets", A)]),
    "a float as offset": (offsets_of("[0, 1.0]"), [("offsets", A)]),
    "false as offset": (offsets_of("[false, 1]"), [("offsets", A)]),
    "an offset of 2**64": (offsets_of(f"[0, {2**64}]"), [("offsets", A)]),
    "offsets that run backwards": (offsets_of("[1, 0]"), [("offsets", A)]),
    "more bytes than shape and dtype need": (
        {"a": entry("U8", [1], [0, 2])},
        [("size_mismatch", A), ("truncated", FILE)],
    ),
    "fewer bytes than shape and dtype need": ({"a": entry("F16", [1], [0, 1])}, [("size_mismatch", A)]),
    "a hole before the first tensor": ({"a": entry(shape=[0], offsets=[1, 1])}, [("hole", A)]),
    "NaN": (shape_of("[NaN]"), [("json", FILE)]),
    "Infinity": (shape_of("[Infinity]"), [("json", FILE)]),
    "-Infinity": (shape_of("[-Infinity]"), [("json", FILE)]),
    "a comment": ('{"a": 1 /* one */}', [("json", FILE)]),
    "a comma too many": ('{"a": 1,}', [("json", FILE)]),
    "text after the object": ("{} {}", [("json", FILE)]),
    "a string that never ends": ('{"a', [("json", FILE)]),
    "a control character in a string": ('{"a\x01": 1}', [("json", FILE)]),
    "a leading space": (' {"a": 1}', [("json", FILE)]),
    "a byte order mark": ('\ufeff{"a": 1}', [("json", FILE)]),
    "a list": ("[1, 2]", [("json", FILE)]),
    "NUL bytes as padding": (json.dumps({"a": entry()}) + "\0\0", [("json", FILE)]),
    "more brackets closed than opened": ("{" + "]" * 1_300_000 + "}", [("json", FILE)]),
    "bytes that aren't UTF-8": (b'{"\xff\xfe": 1}', [("encoding", FILE)]),
    "a surrogate in UTF-8": (b'{"\xed\xa0\x80": 1}', [("encoding", FILE)]),
    "one level too many": (shape_of("[[1]]"), [("nesting", FILE)]),
    "a hundred thousand levels": (raw_entry("[" * 100_000 + "]" * 100_000), [("nesting", FILE)]),
    "a hundred thousand objects inside each other": ('{"a":' * 100_000 + "1" + "}" * 100_000, [("nesting", FILE)]),
    "brackets that are never closed": ('{"a":' + "[" * 100_000, [("nesting", FILE)]),
    "no tensor at all": ("{}", [("trailing_bytes", FILE)]),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_is_refused_with_code_and_place_for(case: str, tmp_path: Path) -> None:
    header, expected = HEADERS[case]
    assert problems_in(file_bytes(header), tmp_path) == expected


@pytest.mark.parametrize("kind", ["hole", "overlap"])
def test_tensors_that_do_not_lie_end_to_end_are_refused(kind: str, tmp_path: Path) -> None:
    begin = 3 if kind == "hole" else 1
    header = {"a": entry(shape=[2], offsets=[0, 2]), "b": entry(shape=[2], offsets=[begin, begin + 2])}
    assert problems_in(file_bytes(header, bytes(begin + 2)), tmp_path) == [(kind, f"{FILE}: b")]


def test_an_empty_tensor_inside_another_is_an_overlap(tmp_path: Path) -> None:
    header = {"a": entry(shape=[4], offsets=[0, 4]), "b": entry(shape=[0], offsets=[2, 2])}
    assert problems_in(file_bytes(header, bytes(4)), tmp_path) == [("overlap", f"{FILE}: b")]


def test_two_tensors_on_the_same_bytes_are_an_overlap(tmp_path: Path) -> None:
    assert problems_in(file_bytes({"a": entry(), "b": entry()}), tmp_path) == [("overlap", f"{FILE}: b")]


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    assert problems_in(good_bytes() + b"\0", tmp_path) == [("trailing_bytes", FILE)]


@pytest.mark.parametrize("size", range(len(good_bytes())))
def test_a_file_cut_at_any_byte_is_truncated(size: int, tmp_path: Path) -> None:
    assert problems_in(good_bytes()[:size], tmp_path) == [("truncated", FILE)]


def test_a_header_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    sparse = tmp_path / "big.safetensors"
    sparse.write_bytes(struct.pack("<Q", HEADER_LIMIT + 1) + b"{")
    os.truncate(sparse, 1 << 36)
    (problem,) = problems_of(lambda: read_file_header(sparse))
    assert (problem.code, problem.location) == ("checkpoint.header_too_large", str(sparse))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1])
def test_a_header_length_that_overflows_is_refused(length: int, tmp_path: Path) -> None:
    assert problems_in(file_bytes("{}", length=length), tmp_path) == [("header_too_large", FILE)]


@pytest.mark.parametrize("length", [0, 1])
def test_a_header_too_short_for_an_object_is_refused(length: int, tmp_path: Path) -> None:
    assert problems_in(file_bytes("{}", length=length), tmp_path) == [("json", FILE)]


def test_every_problem_of_a_file_is_listed_in_one_error(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"k": 1},
        "bad\x07": entry("F128", shape=[1] * 9, offsets=[0, 1]),
        "c": {"dtype": "U8", "shape": [-1], "data_offsets": [5, 4], "extra": 0},
    }
    assert problems_in(file_bytes(header), tmp_path) == [
        ("metadata", f"{FILE}: __metadata__"),
        ("name", f"{FILE}: bad\\x07"),
        ("dtype", f"{FILE}: bad\\x07"),
        ("too_many_dimensions", f"{FILE}: bad\\x07"),
        ("entry", f"{FILE}: c"),
        ("shape", f"{FILE}: c"),
        ("offsets", f"{FILE}: c"),
    ]


def test_a_faulty_entry_does_not_hide_the_faults_of_the_layout(tmp_path: Path) -> None:
    header = {"a": entry("F128"), "b": entry(offsets=[2, 3])}
    assert problems_in(file_bytes(header, bytes(4)), tmp_path) == [
        ("dtype", A),
        ("hole", f"{FILE}: b"),
        ("trailing_bytes", FILE),
    ]


def test_the_first_fifty_problems_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    header = {f"t{place:03d}": entry("F128") for place in range(80)}
    path = tmp_path / FILE
    path.write_bytes(file_bytes(header))
    problems = problems_of(lambda: read_file_header(path, name=FILE))
    assert len(problems) == MAX_LISTED + 1
    assert (problems[-1].code, problems[-1].location) == ("checkpoint.more_problems", FILE)
    # 80 dtypes, and 79 tensors that lie on the first one
    assert problems[-1].message.startswith("109 more")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".PT"])
def test_a_pickle_by_name_is_refused_with_the_way_to_convert_it(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(good_bytes())
    (problem,) = problems_of(lambda: read_checkpoint_header(path))
    assert (problem.code, problem.location) == ("checkpoint.pickle", str(path))
    assert "safetensors.torch.save_file" in problem.message


def _torch_saved(*, archive: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [_torch_saved(archive=True), _torch_saved(archive=False), pickle.dumps([1], protocol=5)],
    ids=["torch archive", "torch legacy", "plain pickle"],
)
def test_a_pickle_by_content_is_refused(content: bytes, tmp_path: Path) -> None:
    assert problems_in(content, tmp_path) == [("pickle", FILE)]


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    header = json.dumps({"a": entry()}).encode().ljust(0x0280)
    path = tmp_path / FILE
    path.write_bytes(file_bytes(header))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert read_file_header(path).tensors[0].name == "a"


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (problem,) = problems_of(lambda: read_checkpoint_header({FILE: tmp_path / "pipe"}))
    assert (problem.code, problem.location) == ("checkpoint.not_a_file", FILE)


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    (problem,) = problems_of(lambda: read_checkpoint_header(missing))
    assert (problem.code, problem.location) == ("checkpoint.not_found", str(missing))
    (problem,) = problems_of(lambda: read_file_header(missing))
    assert (problem.code, problem.location) == ("checkpoint.unreadable", str(missing))


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/abs", "a\\b", "C:", "..", "ключ", "权重", "a b", '"', "n" * 512]
)
def test_a_name_is_only_a_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(good_bytes(name))
    assert list(read_checkpoint_header(path).tensors) == [name]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_of_the_format_is_read(dtype: str, tmp_path: Path) -> None:
    size = DTYPES[dtype].size
    header = {
        "s": entry(dtype, [], [0, size]),
        "e": entry(dtype, [3, 0], [0, 0]),
        "v": entry(dtype, [2], [size, 3 * size]),
    }
    path = tmp_path / FILE
    path.write_bytes(file_bytes(header, bytes(3 * size)))
    read = read_checkpoint_header(path)
    assert {name: spec.shape for name, spec in read.tensors.items()} == {"e": (3, 0), "s": (), "v": (2,)}
    assert read.dtypes == (dtype,)
    assert read.parameters == (3 if DTYPES[dtype].floating else 0)


def test_eight_dimensions_and_metadata_are_legal(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(file_bytes({"__metadata__": {"format": "pt"}, "a": entry(shape=[1] * 8)}))
    header = read_file_header(path)
    assert header.metadata == {"format": "pt"}
    assert header.tensors[0].shape == (1,) * 8
