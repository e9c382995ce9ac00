"""Which files make up a checkpoint, and how an index ties them together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.checkpoints.specs import INDEX_LIMIT
from tests.core.checkpoints.crafting import good_bytes, problems_of

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
GOOD_MAP = {"a": ONE, "b": TWO}


def index_of(weight_map: Any) -> bytes:
    return json.dumps({"metadata": {"total_size": 2}, "weight_map": weight_map}).encode()


def folder_of(root: Path, **contents: bytes) -> Path:
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return root


def sharded(root: Path, index: bytes = index_of(GOOD_MAP), **more: bytes) -> Path:
    return folder_of(root, **{INDEX: index, ONE: good_bytes("a"), TWO: good_bytes("b"), **more})


def refusals(folder: Path) -> list[tuple[str, str]]:
    """Code and location of each problem, the same for the folder and for its files handed over as blobs."""
    by_folder = [
        (problem.code, problem.location.removeprefix(f"{folder}").removeprefix("/") or "checkpoint")
        for problem in problems_of(lambda: read_checkpoint_header(folder))
    ]
    blobs = {path.name: path for path in folder.iterdir()}
    by_blobs = [(problem.code, problem.location) for problem in problems_of(lambda: read_checkpoint_header(blobs))]
    assert by_folder == by_blobs
    return [(code.removeprefix("checkpoint."), location) for code, location in by_folder]


def test_shards_with_an_index_are_one_checkpoint_in_the_order_of_names(tmp_path: Path) -> None:
    sharded(tmp_path, index_of({"a": TWO, "b": ONE}), **{ONE: good_bytes("b"), TWO: good_bytes("a")})
    header = read_checkpoint_header(tmp_path)
    assert list(header.tensors) == ["a", "b"]
    assert [file.name for file in header.files] == [ONE, TWO]
    assert header.tensors["a"].file == tmp_path / TWO


def test_blobs_under_other_names_on_disk_are_a_checkpoint(tmp_path: Path) -> None:
    folder_of(tmp_path, x=index_of(GOOD_MAP), y=good_bytes("a"), z=good_bytes("b"))
    header = read_checkpoint_header({INDEX: tmp_path / "x", ONE: tmp_path / "y", TWO: tmp_path / "z"})
    assert {name: spec.file.name for name, spec in header.tensors.items()} == {"a": "y", "b": "z"}


def test_model_safetensors_is_taken_where_other_files_lie_beside_it(tmp_path: Path) -> None:
    folder_of(
        tmp_path,
        **{
            "model.safetensors": good_bytes("a"),
            "calib.safetensors": good_bytes("inputs"),
            "training_args.bin": b"\x80",
        },
    )
    assert list(read_checkpoint_header(tmp_path).tensors) == ["a"]


def test_the_only_safetensors_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    folder_of(tmp_path, **{"other.safetensors": good_bytes("a"), "config.json": b"{}"})
    assert list(read_checkpoint_header(tmp_path).tensors) == ["a"]


def test_a_folder_with_several_files_and_no_index_is_ambiguous(tmp_path: Path) -> None:
    folder_of(tmp_path, **{"x.safetensors": good_bytes("a"), "y.safetensors": good_bytes("b")})
    assert refusals(tmp_path) == [("ambiguous", "checkpoint")]


def test_a_single_file_beside_an_index_that_does_not_name_it_is_ambiguous(tmp_path: Path) -> None:
    sharded(tmp_path, **{"model.safetensors": good_bytes("a")})
    assert refusals(tmp_path) == [("ambiguous", "model.safetensors")]


def test_two_indexes_are_ambiguous(tmp_path: Path) -> None:
    folder_of(tmp_path, **{f"{name}.safetensors.index.json": index_of(GOOD_MAP) for name in ("x", "y")})
    assert refusals(tmp_path) == [("ambiguous", "checkpoint")]


def test_a_folder_without_safetensors_says_what_to_add(tmp_path: Path) -> None:
    folder_of(tmp_path, **{"config.json": b"{}"})
    assert refusals(tmp_path) == [("not_found", "checkpoint")]


def test_a_folder_of_pickles_names_each_and_how_to_convert_it(tmp_path: Path) -> None:
    folder_of(tmp_path, **{"pytorch_model.bin": b"\x80", "extra.pt": b"\x80", "config.json": b"{}"})
    assert refusals(tmp_path) == [("pickle", "extra.pt"), ("pickle", "pytorch_model.bin")]


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, **{"model.safetensors": b"\x02" + bytes(7) + b"{}"})
    assert refusals(tmp_path) == [("empty", "checkpoint")]


def test_every_missing_shard_is_listed(tmp_path: Path) -> None:
    folder_of(tmp_path, **{INDEX: index_of(GOOD_MAP)})
    assert refusals(tmp_path) == [("shard_missing", ONE), ("shard_missing", TWO)]


def test_a_missing_shard_does_not_hide_the_faults_of_another(tmp_path: Path) -> None:
    folder_of(tmp_path, **{INDEX: index_of(GOOD_MAP), TWO: good_bytes("b") + b"\0"})
    assert refusals(tmp_path) == [("shard_missing", ONE), ("trailing_bytes", TWO)]


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        ".safetensors",
        "..",
        "",
        "x.bin",
        "x\0.safetensors",
        "n" * 250 + ".safetensors",
        7,
        None,
        [ONE],
    ],
)
def test_an_index_may_only_name_plain_files_beside_it(shard: object, tmp_path: Path) -> None:
    sharded(tmp_path, index_of({**GOOD_MAP, "c": shard}))
    assert refusals(tmp_path) == [("shard_name", f"{INDEX}: c")]


def test_a_tensor_that_the_named_shard_does_not_hold_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, index_of({**GOOD_MAP, "c": ONE}))
    assert refusals(tmp_path) == [("tensor_missing", f"{INDEX}: c")]


def test_a_tensor_that_the_index_does_not_name_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, **{TWO: good_bytes("c")})
    assert refusals(tmp_path) == [
        ("tensor_missing", f"{INDEX}: b"),
        ("tensor_not_in_index", f"{TWO}: c"),
    ]


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, **{TWO: good_bytes("a")})
    assert ("duplicate_tensor", f"{TWO}: a") in refusals(tmp_path)


def test_tensors_swapped_between_shards_are_refused(tmp_path: Path) -> None:
    sharded(tmp_path, index_of({"a": TWO, "b": ONE}))
    assert refusals(tmp_path) == [
        ("tensor_missing", f"{INDEX}: a"),
        ("tensor_missing", f"{INDEX}: b"),
        ("tensor_not_in_index", f"{ONE}: a"),
        ("tensor_not_in_index", f"{TWO}: b"),
    ]


@pytest.mark.parametrize(
    ("index", "code", "place"),
    [
        (b"", "json", ""),
        (b"[]", "index", ""),
        (b"{}", "index", ""),
        (b'{"weight_map": []}', "index", ""),
        (b"\xff", "encoding", ""),
        (b'{"metadata": NaN, "weight_map": {}}', "json", ""),
        (b'{"metadata": ' + b"[" * 500 + b"]" * 500 + b"}", "nesting", ""),
        (b'{"metadata": ' + b"[" * 100_000 + b"}", "too_many_values", ""),
        (b'{"weight_map": {"a": "%b", "a": "%b"}}' % (ONE.encode(), ONE.encode()), "duplicate_key", ": a"),
        (b'{"weight_map": {}, "weight_map": {}}', "duplicate_key", ": weight_map"),
        (b'{"weight_map": {"a\\u0000": "%b"}}' % ONE.encode(), "name", ": a\\x00"),
        (b"{" + b" " * INDEX_LIMIT + b"}", "index_too_large", ""),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_faulty_index_is_refused(index: bytes, code: str, place: str, tmp_path: Path) -> None:
    sharded(tmp_path, index)
    assert refusals(tmp_path)[0] == (code, f"{INDEX}{place}")
