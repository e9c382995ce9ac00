from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.checkpoints.specs import HEADER_LIMIT, MAX_TENSORS
from tests.core.checkpoints.crafting import file_bytes, problems_in

FILE = "model.safetensors"
EMPTY = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'

# Prints the seconds and the growth of resident memory in MiB that reading one header costs a process of its own.
MEASURE = """
import sys, time
from pathlib import Path
from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.errors import CheckpointError
from tests.core.peaks import peak_kibibytes
before, start = peak_kibibytes(), time.process_time()
try:
    found = len(read_checkpoint_header(Path(sys.argv[1])).tensors)
except CheckpointError as error:
    found = error.problems[0].code
print(found, time.process_time() - start, (peak_kibibytes() - before) / 1024)
"""


def measure(header: bytes, folder: Path) -> tuple[str, float, float]:
    path = folder / FILE
    path.write_bytes(file_bytes(header, b""))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    found, seconds, mebibytes = done.stdout.split()
    return found, float(seconds), float(mebibytes)


def entries(count: int) -> bytes:
    names = (b'"%d":' % place for place in range(count))
    return b"{" + b",".join(name + EMPTY for name in names) + b"}"


def test_the_largest_legal_header_costs_seconds_and_modest_memory(tmp_path: Path) -> None:
    header = entries(MAX_TENSORS).ljust(HEADER_LIMIT)
    found, seconds, mebibytes = measure(header, tmp_path)
    assert found == str(MAX_TENSORS)
    assert seconds < 20
    assert mebibytes < 320


def test_one_tensor_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    assert problems_in(file_bytes(entries(MAX_TENSORS + 1), b""), tmp_path) == [("too_many_tensors", FILE)]


HOSTILE: dict[str, tuple[str, bytes]] = {
    "only opening brackets": ("too_many_values", b'{"a":' + b"[" * (HEADER_LIMIT - 5)),
    "five million empty arrays": ("too_many_values", b'{"a":[' + b"[]," * 5_000_000 + b"[]]}"),
    "five million empty objects": ("too_many_values", b'{"a":[' + b"{}," * 5_000_000 + b"{}]}"),
    "two million metadata strings": (
        "too_many_values",
        b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(1_000_000)) + b"}}",
    ),
    "three million strings that end in a backslash": (
        "too_many_values",
        b'{"a":[' + b",".join([rb'"\\"'] * 3_000_000) + b"]}",
    ),
    "eight million zeros": ("too_many_values", b'{"a":{"shape":[' + b"0," * (HEADER_LIMIT // 2 - 20) + b"0]}}"),
    "eight million escaped quotes": ("json", b'{"' + b'\\"' * (HEADER_LIMIT // 2 - 2)),
    "one number of sixteen million digits": ("entry", b'{"a":' + b"9" * (HEADER_LIMIT - 6) + b"}"),
    "one name of sixteen million characters": ("name", b'{"' + b"n" * (HEADER_LIMIT - 6) + b'":1}'),
    "one name two hundred thousand times": ("duplicate_key", b"{" + b",".join([b'"a":{}'] * 200_000) + b"}"),
    "two hundred thousand empty entries": ("entry", b"{" + b",".join(b'"%d":{}' % n for n in range(200_000)) + b"}"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_at_the_price_of_a_legal_one(case: str, tmp_path: Path) -> None:
    code, header = HOSTILE[case]
    assert len(header) <= HEADER_LIMIT
    found, seconds, mebibytes = measure(header, tmp_path)
    assert found == f"checkpoint.{code}"
    assert seconds < 20
    assert mebibytes < 320


def test_a_header_goes_through_a_pipe_to_another_process(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(file_bytes(entries(3), b""))
    header = read_checkpoint_header(path)
    assert pickle.loads(pickle.dumps(header)) == header


def test_importing_the_header_reader_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, cogram_core.checkpoints, cogram_core.checkpoints.header;"
        "print(sorted({'torch', 'numpy', 'safetensors'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
