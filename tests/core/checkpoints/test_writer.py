from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch

from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.checkpoints.writer import CheckpointWriter, TensorLayout
from cogram_core.errors import OutputError
from tests.core.checkpoints.crafting import open_descriptors

A = TensorLayout("a", "F32", (2,))
B = TensorLayout("b", "BF16", (3,))


def test_a_file_has_its_final_size_before_the_first_tensor(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, [A, B]) as writer:
        early = (tmp_path / "model.safetensors").stat().st_size
        writer.write("b", torch.ones(3, dtype=torch.bfloat16))
        writer.write("a", torch.ones(2))
        assert writer.finish() == ("model.safetensors",)
    assert (tmp_path / "model.safetensors").stat().st_size == early
    assert read_checkpoint_header(tmp_path).nbytes == 14


def test_shards_are_named_and_indexed_as_hugging_face_does(tmp_path: Path) -> None:
    layout = [TensorLayout(name, "F32", (2,)) for name in "dcba"] + [TensorLayout("large", "F32", (10,))]
    with CheckpointWriter(tmp_path, layout, max_shard_bytes=16) as writer:
        for tensor in layout:
            writer.write(tensor.name, torch.ones(tensor.shape))
        files = writer.finish()
    one, two, three = (f"model-0000{place}-of-00003.safetensors" for place in (1, 2, 3))
    assert files == (one, two, three, "model.safetensors.index.json")
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    text = (tmp_path / files[-1]).read_text()
    expected = {"metadata": {"total_size": 72}, "weight_map": {"a": one, "b": one, "c": two, "d": two, "large": three}}
    assert text == json.dumps(expected, indent=2, sort_keys=True) + "\n"


def test_a_checkpoint_that_fits_one_file_has_no_index(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, [A], max_shard_bytes=1) as writer:
        assert writer.files == ("model.safetensors",)


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, [A]) as writer, pytest.raises(OutputError, match="z is not in the layout"):
        writer.write("z", torch.ones(2))


def test_a_tensor_is_written_once(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, [A]) as writer:
        writer.write("a", torch.ones(2))
        with pytest.raises(OutputError, match="a is written already"):
            writer.write("a", torch.ones(2))


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, dtype=torch.float64), torch.ones(3), torch.ones(1, 2), torch.ones(2, dtype=torch.complex64)],
)
def test_another_dtype_or_shape_than_the_layout_says_is_refused(tensor: torch.Tensor, tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, [A]) as writer, pytest.raises(OutputError, match=r"the layout says F32 \[2\]"):
        writer.write("a", tensor)


def test_finish_names_the_tensors_that_are_missing(tmp_path: Path) -> None:
    layout = [TensorLayout(f"t{place:02d}", "F32", ()) for place in range(12)]
    with CheckpointWriter(tmp_path, layout) as writer:
        writer.write("t00", torch.tensor(1.0))
        with pytest.raises(OutputError, match=r"t01, t02, .* t08 and 3 more not written"):
            writer.finish()


def test_a_tensor_that_needs_a_gradient_is_written(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, [A]) as writer:
        writer.write("a", torch.ones(2, requires_grad=True))
        writer.finish()
    with CheckpointReader.open(tmp_path) as reader:
        assert reader.read("a").tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([A, A], "a: two tensors have this name"),
        ([TensorLayout("", "F32", ())], "name is empty"),
        ([TensorLayout("a\0", "F32", ())], r"a\\x00: the name has characters"),
        ([TensorLayout("__metadata__", "F32", ())], "reserved"),
        ([TensorLayout("a", "C64", ())], "dtype C64"),
        ([TensorLayout("a", "F32", (1,) * 9)], "9 dimensions"),
        ([TensorLayout("a", "F32", (-1, -1))], r"shape \[-1, -1\]"),
        ([TensorLayout("a", "F32", (2**62,))], "can't be stored"),
        ([TensorLayout("a", "F32", (0, 2**62))], "can't be stored"),
        ([], "0 tensors"),
    ],
)
def test_a_layout_that_the_strict_reader_would_refuse_is_not_written(
    layout: list[TensorLayout], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OutputError, match=message):
        CheckpointWriter(tmp_path, layout)
    assert list(tmp_path.iterdir()) == []


def test_a_header_over_the_limit_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="a header of"):
        CheckpointWriter(tmp_path, [A], metadata={"k": "x" * (16 * 1024 * 1024)})
    with pytest.raises(OutputError, match="surrogate"):
        CheckpointWriter(tmp_path, [A], metadata={"k": "\ud800"})
    assert list(tmp_path.iterdir()) == []


def test_shards_need_room_for_a_byte(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="shards of 0 bytes"):
        CheckpointWriter(tmp_path, [A], max_shard_bytes=0)


def test_an_existing_file_is_not_overwritten_and_nothing_stays_open(tmp_path: Path) -> None:
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"precious")
    before = open_descriptors()
    with pytest.raises(OutputError, match=r"model-00002-of-00002.safetensors: can't be written \(File exists\)"):
        CheckpointWriter(tmp_path, [A, B], max_shard_bytes=1)
    assert (tmp_path / "model-00002-of-00002.safetensors").read_bytes() == b"precious"
    assert open_descriptors() == before


def test_a_file_system_without_room_is_an_error_of_ours(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
    try:
        with pytest.raises(OutputError, match=r"model.safetensors: can't be written \(File too large\)"):
            CheckpointWriter(tmp_path, [A])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_is_not_there_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"can't be written \(No such file"):
        CheckpointWriter(tmp_path / "none", [A])


def test_more_shards_than_a_process_may_hold_open_files(tmp_path: Path) -> None:
    count, (soft, hard) = 300, resource.getrlimit(resource.RLIMIT_NOFILE)
    layout = [TensorLayout(f"t{place:03}", "F32", (4,)) for place in range(count)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        with CheckpointWriter(tmp_path, layout, max_shard_bytes=16) as writer:
            for place in reversed(range(count)):
                writer.write(f"t{place:03}", torch.full((4,), float(place)))
            assert len(writer.finish()) == count + 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with CheckpointReader.open(tmp_path) as reader:
        assert [reader.read(name)[0].item() for name in reader.names] == list(range(count))
