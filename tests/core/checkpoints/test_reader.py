from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cogram_core.checkpoints.reader import CheckpointReader
from tests.core.checkpoints.crafting import entry, file_bytes, open_descriptors, problems_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.ones(3, dtype=torch.bfloat16)}, path)
    return path


def test_files_are_opened_at_the_first_read_and_closed_at_the_end(path: Path) -> None:
    before = open_descriptors()
    with CheckpointReader.open(path) as reader:
        assert open_descriptors() == before
        reader.read("a")
        reader.read("b")
        assert open_descriptors() == before + 1
    assert open_descriptors() == before


def test_a_tensor_read_twice_shares_no_memory(path: Path) -> None:
    with CheckpointReader.open(path) as reader:
        first, second = reader.read("a"), reader.read("a")
    first.zero_()
    assert torch.equal(second, torch.arange(4.0))


def test_an_unknown_name_is_refused(path: Path) -> None:
    with CheckpointReader.open(path) as reader:
        (problem,) = problems_of(lambda: reader.read("none"))
    assert (problem.code, problem.location) == ("checkpoint.unknown_tensor", "none")


def test_a_file_cut_short_while_it_is_open_gives_an_error_and_no_signal(path: Path) -> None:
    with CheckpointReader.open(path) as reader:
        reader.read("b")
        os.truncate(path, path.stat().st_size - 1)
        (problem,) = problems_of(lambda: reader.read("b"))
        assert (problem.code, problem.location) == ("checkpoint.truncated", "model.safetensors: b")
        (problem,) = problems_of(reader.digest)
        assert (problem.code, problem.location) == ("checkpoint.truncated", "model.safetensors")


def test_a_file_of_another_size_than_its_header_said_is_refused(path: Path) -> None:
    reader = CheckpointReader.open(path)
    with path.open("ab") as file:
        file.write(b"\0")
    (problem,) = problems_of(lambda: reader.read("a"))
    assert (problem.code, problem.location) == ("checkpoint.changed", "model.safetensors")


def test_a_file_that_is_gone_is_refused(path: Path) -> None:
    reader = CheckpointReader.open(path)
    path.unlink()
    (problem,) = problems_of(lambda: reader.read("a"))
    assert (problem.code, problem.location) == ("checkpoint.unreadable", "model.safetensors")


def test_a_bool_that_is_neither_0_nor_1_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes({"mask": entry("BOOL", [2], [0, 2])}, b"\x01\x02"))
    with CheckpointReader.open(path) as reader:
        (problem,) = problems_of(lambda: reader.read("mask"))
    assert (problem.code, problem.location) == ("checkpoint.bool", "model.safetensors: mask")


def test_a_header_that_is_not_aligned_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header += b" " * (1 - len(header) % 2)
    assert len(header) % 8
    path.write_bytes(file_bytes(header, torch.tensor(1.5).numpy().tobytes()))
    with CheckpointReader.open(path) as reader:
        assert reader.read("a").tolist() == [1.5]


def test_digests_are_those_of_the_files_and_one_of_their_sorted_lines(tmp_path: Path) -> None:
    index = b'{"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    save_file({"b": torch.ones(3)}, tmp_path / "y.safetensors")
    with CheckpointReader.open(tmp_path) as reader:
        digest = reader.digest()
    expected = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("x.safetensors", "y.safetensors")
    }
    assert digest.files == expected
    lines = "".join(sorted(f"{value}  {name}\n" for name, value in expected.items()))
    assert digest.combined == hashlib.sha256(lines.encode()).hexdigest()


def test_many_threads_may_read_at_once(path: Path) -> None:
    before = open_descriptors()
    with CheckpointReader.open(path) as reader, ThreadPoolExecutor(8) as pool:
        read = list(pool.map(reader.read, ["a"] * 64))
        assert open_descriptors() == before + 1
    assert all(torch.equal(tensor, torch.arange(4.0)) for tensor in read)


def test_reading_one_tensor_of_a_large_file_takes_the_memory_of_that_tensor(tmp_path: Path) -> None:
    layout = {"large": entry("U8", [1 << 36], [8, (1 << 36) + 8]), "small": entry("F32", [2], [0, 8])}
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes(layout, b""))
    os.truncate(path, path.stat().st_size + (1 << 36) + 8)
    code = (
        "import sys; from pathlib import Path; from cogram_core.checkpoints.reader import CheckpointReader;"
        "from tests.core.peaks import peak_kibibytes;"
        "reader = CheckpointReader.open(Path(sys.argv[1]));"
        "before = peak_kibibytes();"
        "print(reader.read('small').tolist(), peak_kibibytes() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    values, kibibytes = done.stdout.rsplit(" ", 1)
    assert values == "[0.0, 0.0]"
    assert int(kibibytes) < 16 * 1024


def test_more_files_than_may_be_open_is_an_error_of_ours(path: Path) -> None:
    reader = CheckpointReader.open(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        (problem,) = problems_of(lambda: reader.read("a"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (problem.code, problem.location) == ("checkpoint.unreadable", "model.safetensors")
