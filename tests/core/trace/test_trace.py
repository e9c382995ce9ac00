from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cogram_core.errors import ReplayError
from cogram_core.journal import Journal
from cogram_core.recording import Recorder
from cogram_core.trace import METADATA_KEY, SCHEMA, Decision, Trace
from tests.core.trace.decisions import METADATA, decision


def finished(tmp_path: Path, count: int = 3) -> Path:
    journal = Journal(tmp_path / "journal")
    for seq in range(count):
        journal.append(decision(seq, payload=b"shares"))
    journal.finish(tmp_path / "trace.parquet", METADATA)
    return tmp_path / "trace.parquet"


def refusal(path: Path) -> str:
    with pytest.raises(ReplayError) as caught:
        Trace(path)
    (problem,) = caught.value.problems
    assert problem.location == str(path)
    assert "trace.parquet of" in problem.message
    return problem.code


def test_the_file_is_parquet_with_the_decisions_columns_and_metadata(tmp_path: Path) -> None:
    file = pq.ParquetFile(finished(tmp_path))
    assert file.schema_arrow.names == [field.name for field in fields(Decision)]
    assert file.schema_arrow.equals(SCHEMA)
    assert json.loads(file.schema_arrow.metadata[METADATA_KEY]) == METADATA
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert file.read().column("loss_sources").to_pylist() == [[0.5, 0.75]] * 3
    file.close()


def test_a_trace_opens_from_bytes_as_from_a_path(tmp_path: Path) -> None:
    path = finished(tmp_path)
    one, other = Trace(path), Trace(path.read_bytes())
    assert len(one) == len(other) == 3
    assert list(one.decisions()) == list(other.decisions())
    assert one.metadata == other.metadata == METADATA


def test_a_run_without_decisions_has_an_empty_trace(tmp_path: Path) -> None:
    trace = Trace(finished(tmp_path, count=0))
    assert len(trace) == 0
    assert list(trace.decisions()) == []


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.parquet"
    path.write_bytes(content)
    assert refusal(path) == "replay.unreadable"


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.parquet") == "replay.unreadable"
    assert refusal(tmp_path) == "replay.unreadable"


def other_parquet(path: Path, schema: pa.Schema, metadata: dict[bytes, bytes]) -> Path:
    with pq.ParquetWriter(path, schema.with_metadata(metadata)):
        pass
    return path


@pytest.mark.parametrize(
    ("schema", "metadata"),
    [
        (pa.schema([("a", pa.int64())]), {METADATA_KEY: json.dumps(METADATA).encode()}),
        (SCHEMA.set(0, pa.field("seq", pa.string())), {METADATA_KEY: json.dumps(METADATA).encode()}),
        (SCHEMA, {}),
        (SCHEMA, {METADATA_KEY: b"{"}),
        (SCHEMA, {METADATA_KEY: b"[]"}),
        (SCHEMA, {METADATA_KEY: b"{}"}),
        (SCHEMA, {METADATA_KEY: json.dumps({"recipe": {}, "sources": []}).encode()}),
    ],
)
def test_another_parquet_file_is_refused(tmp_path: Path, schema: pa.Schema, metadata: dict[bytes, bytes]) -> None:
    assert refusal(other_parquet(tmp_path / "other.parquet", schema, metadata)) == "replay.not_a_trace"


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.integers(0, 300))
def test_a_damaged_trace_is_refused_or_read_never_anything_else(
    tmp_path: Path, place: int, byte: int, cut: int
) -> None:
    path = tmp_path / "trace.parquet"
    raw = bytearray((path if path.exists() else finished(tmp_path)).read_bytes())
    raw[place % len(raw)] = byte
    damaged = bytes(raw[: len(raw) - cut if cut > 200 else len(raw)])
    with suppress(ReplayError):
        assert all(isinstance(row, Decision) for row in Trace(damaged).decisions())


def test_the_recorder_numbers_and_tells_every_decision(tmp_path: Path) -> None:
    heard: list[Decision] = []
    journal = Journal(tmp_path / "journal")
    recorder = Recorder(journal, heard.append)
    facts: dict[str, Any] = {"stage": 0, "method": "m", "layer": "a", "kind": "layer", "reason": "r"}
    recorder.record(action="merged", shares=(0.5, 0.5), step=1.0, **facts)
    recorder.record(action="skipped", **facts)
    assert recorder.count == 2
    assert [row.seq for row in heard] == [0, 1]
    assert 0 <= heard[0].elapsed <= heard[1].elapsed
    assert list(journal.decisions()) == heard
    journal.close()
