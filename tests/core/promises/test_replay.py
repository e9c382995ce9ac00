"""Promise 2: sources and trace give the fused bytes again, with no data and no forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cogram_core import fuse, replay
from cogram_core.trace import Trace
from tests.core.factories import (
    checkpoint_bytes,
    conv_net,
    initialise,
    mlp,
    points,
    read_output,
    recipe_document,
    specialists,
    trained,
)
from tests.core.promises.replaying import NEURON, Run

THRESHOLDS = {**NEURON, "refinement": "thresholds", "tau_min": 0.01, "tau_max": 0.2}
FINE = {**NEURON, "rollback": "fine", "step": "full"}
ONCE = {"max_sweeps": {"layer": 1, "neuron": 1, "weight": 1}}
WEIGHT = {"method": "cogram", "granularity": "weight", **ONCE}
BY_SPREAD = {**WEIGHT, "refinement": "thresholds", "tau": "auto", "competence": 0.5}


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
