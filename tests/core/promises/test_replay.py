"""Promise 2: sources and trace give the fused bytes again, with no data and no forward pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import Tensor, nn

from cogram_core import fuse, replay
from cogram_core.errors import CheckpointError, ReplayError
from cogram_core.trace import METADATA_KEY, Trace
from tests.core.factories import (
    checkpoint_bytes,
    conv_net,
    initialise,
    mlp,
    points,
    read_output,
    recipe_document,
    save_checkpoint,
    specialists,
    trained,
)

NEURON = {"method": "cogram", "granularity": "neuron", "prototypes": {"per_class": 2}}
THRESHOLDS = {**NEURON, "refinement": "thresholds", "tau_min": 0.01, "tau_max": 0.2}
FINE = {**NEURON, "rollback": "fine", "step": "full"}
ONCE = {"max_sweeps": {"layer": 1, "neuron": 1, "weight": 1}}
WEIGHT = {"method": "cogram", "granularity": "weight", **ONCE}
BY_SPREAD = {**WEIGHT, "refinement": "thresholds", "tau": "auto", "competence": 0.5}


class Run:
    """A finished fusion whose data and forward passes are taken away before it is replayed."""

    def __init__(self, folder: Path, modules: list[nn.Module], stages: list[Any], **options: Any) -> None:
        convolution = isinstance(next(modules[0].children()), nn.Conv2d)
        shape, classes = ((1, 4, 4), 3) if convolution else ((6,), 4)
        data = {name: points(90 + place, 40, shape, classes) for place, name in enumerate(("evaluation", "holdout"))}
        document = recipe_document(folder / "in", modules, stages, **{**data, **options})
        self.output = folder / "out"
        self.fusion = fuse(document, self.output)
        self.sources = [Path(source["checkpoint"]) for source in document["sources"]]
        self.trace = folder / "trace.parquet"
        shutil.copyfile(self.output / "trace.parquet", self.trace)
        for path in (folder / "in").glob("*.safetensors"):
            path.unlink()

    def assert_replays(self, monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
        expected = checkpoint_bytes(self.output)
        with monkeypatch.context() as patch:

            def forbidden(*_: Any, **__: Any) -> Tensor:
                raise AssertionError("a replay must not run a network")

            patch.setattr(nn.Module, "__call__", forbidden)
            patch.setattr(nn.Module, "__init__", forbidden)
            assert replay(self.sources, self.trace, target) == target
        assert expected
        assert checkpoint_bytes(target) == expected


@pytest.mark.parametrize("build", [mlp, conv_net])
@pytest.mark.parametrize(
    "stages",
    [
        ["linear"],
        ["fisher"],
        ["cogram"],
        ["linear", NEURON],
        ["fisher", THRESHOLDS],
        ["linear", FINE],
        ["linear", "cogram", NEURON, THRESHOLDS],
        ["fisher", NEURON, "linear", FINE],
    ],
    ids=lambda stages: "-".join(stage if isinstance(stage, str) else stage["method"] for stage in stages),
)
def test_every_combination_of_stages_replays(
    stages: list[Any], build: Callable[[int], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, specialists(3, 3, build), stages, guard="report")
    assert run.fusion.verdict["written"]["kind"] == "stage"
    run.assert_replays(monkeypatch, tmp_path / "again")


@pytest.mark.parametrize("dtype", ["source", "float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("stages", [["linear"], ["fisher", NEURON]], ids=["linear", "fisher-cogram"])
def test_every_output_dtype_replays_in_shards(
    dtype: str, stages: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = {"dtype": dtype, "max_shard_bytes": 150}
    run = Run(tmp_path, specialists(1), stages, output=output, guard="report")
    assert len(list(run.output.glob("*.safetensors"))) > 1
    run.assert_replays(monkeypatch, tmp_path / "again")


@pytest.mark.parametrize(
    "stage",
    [
        WEIGHT,
        BY_SPREAD,
        {**WEIGHT, "extra_candidates": ["current", "average"]},
        {**WEIGHT, "mode": "blockwise"},
        {**BY_SPREAD, "mode": "blockwise", "extra_candidates": ["average"]},
        {**WEIGHT, "unit_guard": True},
        {**WEIGHT, "max_decisions": 50},
        {"method": "cogram", "preset": "paper", "granularity": "weight"},
    ],
    ids=["weights", "thresholds", "extras", "blockwise", "blockwise thresholds", "unit guard", "stopped", "paper"],
)
def test_every_way_to_decide_on_weights_replays(
    stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, specialists(3), ["linear", stage], guard="report")
    kinds = {decision.kind for decision in Trace(run.trace).decisions() if decision.action == "merged"}
    assert "layer" in kinds if stage.get("preset") else "weight" in kinds or "max_decisions" in stage
    run.assert_replays(monkeypatch, tmp_path / "again")


def test_weights_and_double_precision_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, specialists(1, 3), [{"method": "fisher", "normalize": True}, NEURON], compute_dtype="float64")
    run.assert_replays(monkeypatch, tmp_path / "again")


def test_a_trace_of_any_state_dict_without_data_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = specialists(1)
    document = recipe_document(tmp_path / "in", modules, [{"method": "linear", "normalize": False}])
    document["sources"][1]["weight"] = 0.3
    fuse(document, tmp_path / "out")
    sources = [source["checkpoint"] for source in document["sources"]]
    replay(sources, tmp_path / "out" / "trace.parquet", tmp_path / "again")
    assert checkpoint_bytes(tmp_path / "again") == checkpoint_bytes(tmp_path / "out")


def find(tmp_path: Path, wanted: Callable[[Run], bool], make: Callable[[int], dict[str, Any]]) -> Run:
    """The first seed whose run is of the wanted sort."""
    for seed in range(60):
        run = Run(tmp_path / str(seed), **make(seed))
        if wanted(run):
            return run
    raise AssertionError("no seed gave such a run")


def test_a_source_that_was_written_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = trained(mlp(1), points(5, 200), 60)
    run = Run(tmp_path, [bad(7), good, bad(8)], ["linear", "fisher"], output={"dtype": "bfloat16"})
    assert run.fusion.verdict["written"]["source"] == 1
    run.assert_replays(monkeypatch, tmp_path / "again")
    original = read_output(run.sources[1])
    assert all(tensor.equal(original[name].bfloat16()) for name, tensor in read_output(tmp_path / "again").items())


def bad(seed: int) -> nn.Module:
    """A network that no mean with it survives."""
    return initialise(mlp(seed), seed, 5.0)


def misled(seed: int) -> dict[str, Any]:
    """Decisions are taken on wrong labels, the verdict on right ones: the later, the worse."""
    inputs, targets = points(95 + seed, 40)
    start = mlp(seed)
    modules = [trained(start, points(seed + place, 40), 8) for place in (1, 2)]
    return {"modules": modules, "stages": ["fisher", NEURON], "evaluation": (inputs, targets.flip(0))}


def test_a_plain_average_that_was_written_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = find(tmp_path, lambda run: bool(run.fusion.verdict["written"]["kind"] == "average"), misled)
    run.assert_replays(monkeypatch, tmp_path / "again")


def test_a_sweep_in_the_middle_that_was_written_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_the_middle(run: Run) -> bool:
        written, last = run.fusion.verdict["written"], run.fusion.verdict["candidates"][-1]
        decided = [d.seq for d in Trace(run.trace).decisions() if d.action == "merged" and d.stage == 1]
        return (
            written["label"].startswith("cogram")
            and any(seq < written["seq"] for seq in decided)
            and any(written["seq"] <= seq < last["seq"] for seq in decided)
        )

    def make(seed: int) -> dict[str, Any]:
        return {"modules": specialists(seed), "stages": ["linear", NEURON], "holdout": points(seed + 300, 15)}

    run = find(tmp_path, in_the_middle, make)
    run.assert_replays(monkeypatch, tmp_path / "again")


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
