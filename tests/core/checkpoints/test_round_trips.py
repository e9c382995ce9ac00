"""What one side writes the other reads, with the safetensors library as the independent other side."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cogram_core.checkpoints.header import DTYPES, read_checkpoint_header
from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.checkpoints.torch_dtypes import DTYPE_NAMES, TORCH_DTYPES
from cogram_core.checkpoints.writer import CheckpointWriter, TensorLayout
from cogram_core.errors import CheckpointError
from tests.core.checkpoints.crafting import file_bytes

CALM = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
names = st.text(min_size=1, max_size=20).filter(lambda name: name.isprintable() and name != "__metadata__")
odd_names = st.sampled_from(["../../x", "/", "a.b.c", " ", '"', "\\", "é", "权重", "𝛼", "n" * 512])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Random bits of any dtype, so that NaNs, infinities and subnormals occur; scalars and empty ones too."""
    name = draw(st.sampled_from(sorted(TORCH_DTYPES)))
    dtype = TORCH_DTYPES[name]
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    size = torch.empty(shape, dtype=torch.uint8).numel() * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    data = torch.tensor(list(raw), dtype=torch.uint8)
    data = data & 1 if name == "BOOL" else data
    tensor = data.view(dtype).reshape(shape)
    strided = draw(st.sampled_from(["no", "transposed", "every second", "expanded"])) if shape else "no"
    if strided == "transposed":
        return tensor.transpose(0, -1)
    if strided == "every second":
        return tensor[::2]
    return tensor[:1].expand(3, *shape[1:]) if strided == "expanded" and shape[0] else tensor


checkpoints = st.dictionaries(names | odd_names, tensors(), min_size=1, max_size=6)
metadata = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=1)


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    raw = tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), bytes(raw.tolist())


def all_bits(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...], bytes]]:
    return {name: bits(tensor) for name, tensor in state.items()}


def layout_of(state: Mapping[str, Tensor]) -> list[TensorLayout]:
    return [TensorLayout(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()]


def write(folder: Path, state: Mapping[str, Tensor], shard: int | None, notes: Mapping[str, str]) -> tuple[str, ...]:
    with CheckpointWriter(folder, layout_of(state), max_shard_bytes=shard, metadata=notes) as writer:
        for name, tensor in state.items():
            writer.write(name, tensor)
        return writer.finish()


def read(location: Path) -> dict[str, Tensor]:
    with CheckpointReader.open(location) as reader:
        return {name: reader.read(name) for name in reader.names}


@CALM
@given(state=checkpoints, notes=metadata)
def test_a_written_file_is_that_of_the_safetensors_library_byte_for_byte(
    state: dict[str, Tensor], notes: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, state, None, notes)
        library = safetensors.torch.save(
            {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}, notes or None
        )
        assert (folder / "model.safetensors").read_bytes() == library


@CALM
@given(state=checkpoints, shard=st.none() | st.integers(1, 200), notes=metadata)
def test_what_is_written_is_read_back_by_us_and_by_the_library(
    state: dict[str, Tensor], shard: int | None, notes: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write(folder, state, shard, notes)
        assert all_bits(read(folder)) == all_bits(state)
        header = read_checkpoint_header(folder)
        assert all(file.metadata == notes for file in header.files)
        loaded: dict[str, Tensor] = {}
        for file in files:
            if file.endswith(".safetensors"):
                loaded.update(safetensors.torch.load_file(folder / file))
        assert all_bits(loaded) == all_bits(state)
        if shard is not None:
            assert all(file.size - file.data_start <= shard for file in header.files if len(file.tensors) > 1)
        if len(files) > 1:
            index = json.loads((folder / files[-1]).read_text())
            assert index["metadata"]["total_size"] == header.nbytes
            assert list(index["weight_map"]) == sorted(state)


@CALM
@given(state=checkpoints, notes=metadata)
def test_what_the_library_writes_is_read(state: dict[str, Tensor], notes: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "x.safetensors")
        contiguous = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        safetensors.torch.save_file(contiguous, path, notes or None)
        assert all_bits(read(path)) == all_bits(state)


@CALM
@given(state=checkpoints, shard=st.none() | st.integers(1, 200), chance=st.randoms(use_true_random=False))
def test_order_of_layout_and_writing_does_not_change_a_byte(
    state: dict[str, Tensor], shard: int | None, chance: object
) -> None:
    shuffled = list(state.items())
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first = write(Path(one), state, shard, {"b": "2", "a": "1"})
        second = write(Path(two), dict(shuffled), shard, {"a": "1", "b": "2"})
        assert first == second
        for file in first:
            assert Path(one, file).read_bytes() == Path(two, file).read_bytes()


def meaning(content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What the library makes of a file."""
    return {
        name: (view["dtype"], tuple(view["shape"]), bytes(view["data"]))
        for name, view in safetensors.deserialize(content)
    }


def our_meaning(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    content = path.read_bytes()
    return {
        name: (
            spec.dtype,
            spec.shape,
            content[spec.data_start + spec.begin : spec.data_start + spec.end],
        )
        for name, spec in read_checkpoint_header(path).tensors.items()
    }


TOKENS = [
    *(character.encode() for character in '{}[]:,"\\ 0129-.eE'),
    *(b'"a"', b'"b"', b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"F32"', b'"U8"', b'"F4"'),
    *(b"null", b"true", b"NaN", b"9" * 30, b"1e400", b"\xff", b"\0", b'"\\u0000"', b'"\\ud800"', b'{"a":"b"},'),
]
GOOD = safetensors.torch.save(
    {"a": torch.ones(2), "b": torch.zeros(2, 2, dtype=torch.uint8), "c": torch.tensor(1.0), "d": torch.ones(0)},
    {"format": "pt"},
)
edits = st.lists(
    st.tuples(st.integers(0, len(GOOD)), st.integers(0, 4), st.sampled_from([b"", *TOKENS]) | st.binary(max_size=3)),
    min_size=1,
    max_size=4,
)


def agree(content: bytes) -> bool:
    """We read as the library reads, or refuse with our own error, never anything else; True where we read."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "x.safetensors")
        path.write_bytes(content)
        try:
            ours = our_meaning(path)
        except CheckpointError:
            return False
        assert ours == meaning(content)
        return True


@settings(deadline=None, max_examples=1500)
@given(edits=edits)
def test_a_mutated_file_is_read_as_the_library_reads_it_or_refused(edits: list[tuple[int, int, bytes]]) -> None:
    content = GOOD
    for place, removed, added in edits:
        content = content[:place] + added + content[place + removed :]
    agree(content)


@settings(deadline=None, max_examples=1500)
@given(edits=edits)
def test_a_mutated_header_of_the_right_length_is_read_as_the_library_reads_it_or_refused(
    edits: list[tuple[int, int, bytes]],
) -> None:
    length = int.from_bytes(GOOD[:8], "little")
    header, data = GOOD[8 : 8 + length], GOOD[8 + length :]
    for place, removed, added in edits:
        place %= length
        header = header[:place] + added + header[place + removed :]
    agree(file_bytes(header, data))


@st.composite
def headers(draw: st.DrawFn) -> tuple[bytes, bytes, bool]:
    """A header in any order of keys, its data, and whether one value of it was replaced by an odd one."""
    document: dict[str, dict[str, object]] = {}
    begin = 0
    for name in draw(st.lists(names | odd_names, min_size=1, max_size=4, unique=True)):
        dtype, shape = draw(st.sampled_from(sorted(DTYPES))), draw(st.lists(st.integers(0, 3), max_size=4))
        end = begin + math.prod(shape) * DTYPES[dtype].size
        document[name] = {"data_offsets": [begin, end], "shape": shape, "dtype": dtype}
        begin = end
    entry = document[draw(st.sampled_from(sorted(document)))]
    odd = draw(st.booleans())
    if odd:
        numbers = st.sampled_from([0, 1, 2, 4, 8, -1, 0.0, 1.0, True, None, "1", 2**63, 2**64, 10**30])
        key = draw(st.sampled_from(["dtype", "shape", "data_offsets", "extra"]))
        entry[key] = draw(numbers | st.lists(numbers, max_size=10) | st.sampled_from([*DTYPES, "F4", "F8_E8M0", "C64"]))
    shuffled = dict(draw(st.permutations(list(document.items()))))
    text = json.dumps(shuffled, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.integers(0, 2)))
    return text.encode(), bytes(max(0, begin + draw(st.sampled_from([0, 0, 0, 1, -1])) * odd)), odd


@settings(deadline=None, max_examples=800)
@given(drawn=headers())
def test_a_header_with_one_odd_value_is_read_as_the_library_reads_it_or_refused(
    drawn: tuple[bytes, bytes, bool],
) -> None:
    header, data, odd = drawn
    accepted = agree(file_bytes(header, data))
    assert accepted or odd


@settings(deadline=None, max_examples=300)
@given(content=st.binary(max_size=64) | st.binary(max_size=64).map(file_bytes))
def test_arbitrary_bytes_are_refused_with_our_own_error(content: bytes) -> None:
    agree(content)
