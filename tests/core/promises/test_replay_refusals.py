"""What a replay refuses, and what it clears away: no trace and no source makes other bytes than the fusion did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cogram_core import replay
from cogram_core.errors import CheckpointError, ReplayError
from cogram_core.trace import METADATA_KEY, Trace
from tests.core.factories import checkpoint_bytes, mlp, save_checkpoint, specialists
from tests.core.promises.replaying import NEURON, Run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that wrote the result of its last stage."""
    return Run(tmp_path_factory.mktemp("finished"), specialists(2), ["fisher", NEURON], guard="report")


def test_what_a_killed_replay_left_is_cleared_away_by_the_next(finished: Run, tmp_path: Path) -> None:
    left = tmp_path / ".again.0123456789ab.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    replay(finished.sources, finished.trace, tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def refusal(run: Run, target: Path, sources: list[Path] | None = None, trace: Path | None = None) -> list[str]:
    with pytest.raises(ReplayError) as caught:
        replay(sources or run.sources, trace or run.trace, target)
    assert not target.exists()
    assert list(target.parent.glob(f"*{target.name}*")) == []
    return [problem.code for problem in caught.value.problems]


def test_sources_in_another_order_are_refused(finished: Run, tmp_path: Path) -> None:
    codes = refusal(finished, tmp_path / "again", finished.sources[::-1])
    assert codes == ["replay.other_source", "replay.other_source"]


def test_another_source_is_refused_by_its_name(finished: Run, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other", mlp(99))
    with pytest.raises(ReplayError) as caught:
        replay([finished.sources[0], other], finished.trace, tmp_path / "again")
    assert [(problem.location, problem.code) for problem in caught.value.problems] == [
        ("module-1", "replay.other_source")
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_sources_is_refused(finished: Run, tmp_path: Path, count: int) -> None:
    assert refusal(finished, tmp_path / "again", (finished.sources * 2)[:count]) == ["replay.wrong_count"]


def test_a_source_that_is_gone_is_refused(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        replay([finished.sources[0], tmp_path / "gone"], finished.trace, tmp_path / "again")


def rewritten(run: Run, path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    pq.write_table(change(pq.read_table(run.trace)), path)
    return path


def column(table: pa.Table, name: str, change: Callable[[Any], Any]) -> pa.Table:
    at, field = table.schema.get_field_index(name), table.schema.field(name)
    return table.set_column(at, field, pa.array([change(value) for value in table[name].to_pylist()], field.type))


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.slice(0, table.num_rows - 1),
        lambda table: table.slice(1),
        lambda table: pa.concat_tables([table.slice(0, 3), table.slice(4)]),
        lambda table: pa.concat_tables([table.slice(1, 1), table.slice(0, 1), table.slice(2)]),
        lambda table: column(table, "layer", lambda _: "nobody"),
        lambda table: column(table, "shares", lambda shares: shares and shares[:1]),
        lambda table: column(table, "shares", lambda _: None),
        lambda table: column(table, "shares", lambda shares: shares and [None] * len(shares)),
        lambda table: column(table, "step", lambda _: None),
        lambda table: column(table, "row", lambda row: None if row is None else 10_000),
        lambda table: column(table, "stage", lambda stage: stage + 7),
        lambda table: column(table, "payload", lambda payload: payload and payload[:-2]),
        lambda table: column(table, "payload", lambda _: None),
        lambda table: column(table, "action", lambda _: "skipped"),
    ],
    ids=[
        "short",
        "headless",
        "gap",
        "order",
        "layer",
        "share",
        "no shares",
        "empty shares",
        "no step",
        "row",
        "stage",
        "cut",
        "none",
        "skipped",
    ],
)
def test_a_trace_whose_rows_do_not_make_the_network_is_refused(
    finished: Run, tmp_path: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    path = rewritten(finished, tmp_path / "bad.parquet", change)
    assert refusal(finished, tmp_path / "again", trace=path) == ["replay.damaged"]


def on_first_unit(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    """Another value for the first neuron that was merged."""

    def change(table: pa.Table) -> pa.Table:
        facts = zip(table["action"].to_pylist(), table["kind"].to_pylist(), strict=True)
        place = list(facts).index(("merged", "neuron"))
        values = table[name].to_pylist()
        values[place] = value(values[place]) if callable(value) else value
        at, field = table.schema.get_field_index(name), table.schema.field(name)
        return table.set_column(at, field, pa.array(values, field.type))

    return change


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (on_first_unit("row", -1), "there is no row -1"),
        (lambda table: on_first_unit("row", None)(on_first_unit("column", 0)(table)), "column 0 of no row"),
        (on_first_unit("stage", -1), "no stage -1"),
        (on_first_unit("stage", 0), "stage 0 is fisher"),
        (on_first_unit("method", "linear"), "stage 1 is cogram"),
        (on_first_unit("shares", [0.5, 0.25]), "don't sum to one"),
        (on_first_unit("shares", [1.5, -0.5]), "is negative"),
        (on_first_unit("shares", [float("nan"), 1.0]), "don't sum to one"),
        (on_first_unit("step", float("nan")), "step nan"),
        (on_first_unit("step", 3.0), "step 3.0"),
    ],
)
def test_a_crafted_row_that_torch_would_carry_out_is_refused_with_its_place(
    finished: Run, tmp_path: Path, change: Callable[[pa.Table], pa.Table], fault: str
) -> None:
    path = rewritten(finished, tmp_path / "bad.parquet", change)
    with pytest.raises(ReplayError) as caught:
        replay(finished.sources, path, tmp_path / "again")
    (problem,) = caught.value.problems
    changed = next(d.seq for d in Trace(finished.trace).decisions() if (d.action, d.kind) == ("merged", "neuron"))
    assert f"decision {changed} doesn't fit the sources" in problem.message
    assert fault in problem.message


def test_a_trace_cut_off_anywhere_is_refused(finished: Run, tmp_path: Path) -> None:
    content, path = finished.trace.read_bytes(), tmp_path / "bad.parquet"
    for length in (0, 3, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert refusal(finished, tmp_path / "again", trace=path) == ["replay.unreadable"]


def test_a_changed_byte_in_a_trace_never_gives_other_bytes(finished: Run, tmp_path: Path) -> None:
    content, path, expected = finished.trace.read_bytes(), tmp_path / "bad.parquet", checkpoint_bytes(finished.output)
    refused = 0
    for place in range(10, len(content), len(content) // 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        target = tmp_path / f"again-{place}"
        try:
            replay(finished.sources, path, target)
        except ReplayError:
            refused += 1
        else:
            assert checkpoint_bytes(target) == expected
    assert refused > 10


def with_metadata(run: Run, path: Path, **changed: Any) -> Path:
    def change(table: pa.Table) -> pa.Table:
        metadata = json.loads(table.schema.metadata[METADATA_KEY]) | changed
        return table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})

    return rewritten(run, path, change)


@pytest.mark.parametrize("key", ["recipe", "sources", "written"])
def test_a_trace_that_does_not_say_how_it_was_made_is_refused(finished: Run, tmp_path: Path, key: str) -> None:
    path = with_metadata(finished, tmp_path / "bad.parquet", **{key: {"nonsense": 1}})
    assert refusal(finished, tmp_path / "again", trace=path) == ["replay.damaged"]


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "nonsense"},
        {"kind": "source", "source": None},
        {"kind": "source", "source": 2},
        {"kind": "source", "source": -1},
        {"kind": "source", "source": "1"},
        {"kind": "source", "source": True},
        {"seq": -1},
        {"seq": 1.5},
        {"seq": "3"},
        {"seq": None},
    ],
    ids=str,
)
def test_a_trace_that_names_no_network_that_could_be_written_is_refused(
    finished: Run, tmp_path: Path, changed: dict[str, Any]
) -> None:
    written = Trace(finished.trace).metadata["written"] | changed
    path = with_metadata(finished, tmp_path / "bad.parquet", written=written)
    assert refusal(finished, tmp_path / "again", trace=path) == ["replay.damaged"]


def test_a_trace_whose_recipe_has_other_sources_than_were_used_is_refused(finished: Run, tmp_path: Path) -> None:
    recipe = Trace(finished.trace).metadata["recipe"]
    third = {**recipe["sources"][0], "name": "third"}
    path = with_metadata(finished, tmp_path / "bad.parquet", recipe=recipe | {"sources": [*recipe["sources"], third]})
    assert refusal(finished, tmp_path / "again", trace=path) == ["replay.damaged"]


@pytest.mark.parametrize("version", [0, 2, None])
def test_a_trace_of_another_version_is_refused(finished: Run, tmp_path: Path, version: int | None) -> None:
    path = with_metadata(finished, tmp_path / "bad.parquet", version=version)
    assert refusal(finished, tmp_path / "again", trace=path) == ["replay.other_version"]


def test_what_is_no_trace_is_refused(finished: Run, tmp_path: Path) -> None:
    text = tmp_path / "trace.parquet"
    text.write_text("not a trace")
    assert refusal(finished, tmp_path / "again", trace=text) == ["replay.unreadable"]
    table = tmp_path / "table.parquet"
    pq.write_table(pa.table({"seq": [1, 2]}), table)
    assert refusal(finished, tmp_path / "again", trace=table) == ["replay.not_a_trace"]
    assert refusal(finished, tmp_path / "again", trace=tmp_path / "gone.parquet") == ["replay.unreadable"]
