"""What is promised of every run holds where stages train: replay, the guard's choice, the same bytes, going on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cogram_core import fuse, fuse_modules
from cogram_core.errors import FusionStopped
from cogram_core.trace import Decision, Trace
from tests.core.factories import checkpoint_bytes, conv_net, mlp, points, read_output, recipe_document, specialists
from tests.core.pipeline.recording import Recording
from tests.core.promises.replaying import Run
from tests.core.promises.test_replay_refusals import column, refusal, rewritten

FINE = {"method": "finetune", "kickoff_epochs": 1, "epochs": 2, "lr": 0.01, "batch_size": 16}
NEURON = {"method": "cogram", "granularity": "neuron", "prototypes": {"per_class": 2}}
# A kickoff so gentle that it does good, and then steps so large that they do harm.
SPOILED = FINE | {"kickoff_scale": 0.001, "lr": 3.0}


def data(build: Callable[[int], nn.Module], seed: int = 95) -> Any:
    return points(seed, 60, (1, 4, 4), 3) if build is conv_net else points(seed, 60)


@pytest.mark.parametrize("build", [mlp, conv_net])
@pytest.mark.parametrize(
    "stages", [[FINE], ["linear", FINE, NEURON], ["fisher", NEURON, FINE, FINE]], ids=["alone", "before", "after"]
)
def test_what_was_trained_replays_without_data_and_forward_pass(
    stages: list[Any], build: Callable[[int], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, specialists(3, 2, build), stages, training=data(build), guard="report")
    assert run.fusion.report["decisions"]["trained"] > 0
    run.assert_replays(monkeypatch, tmp_path / "again")


@pytest.mark.parametrize("options", [{"compute_dtype": "float64"}, {"output": {"dtype": "bfloat16"}}])
def test_it_replays_in_every_dtype(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, specialists(1), ["linear", FINE, NEURON], training=data(mlp), guard="report", **options)
    run.assert_replays(monkeypatch, tmp_path / "again")


def test_a_candidate_between_two_trainings_is_written_and_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = specialists(2)
    run = Run(tmp_path, modules, ["linear", FINE, NEURON, SPOILED], training=data(mlp))
    candidates = run.fusion.verdict["candidates"]
    assert [c["label"] for c in candidates if c["label"].startswith("finetune")] == [
        "finetune: kickoff",
        "finetune: fine-tuning",
    ] * 2
    trained = [d.seq for d in Trace(run.trace).decisions() if d.action == "trained"]
    written = run.fusion.verdict["written"]["seq"]
    assert trained[0] < written <= trained[-1]
    run.assert_replays(monkeypatch, tmp_path / "again")


@pytest.mark.parametrize("change", [lambda payload: payload and payload[:-4], lambda _: None], ids=["cut", "none"])
def test_a_trace_without_the_trained_values_is_refused(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    run = Run(tmp_path, specialists(2), ["linear", FINE], training=data(mlp), guard="report")
    path = rewritten(run, tmp_path / "bad.parquet", lambda table: column(table, "payload", change))
    assert refusal(run, tmp_path / "again", trace=path) == ["replay.damaged"]


def test_networks_in_memory_give_the_tensors_of_files(tmp_path: Path) -> None:
    modules, stages = specialists(8, 2, conv_net), ["fisher", SPOILED, NEURON]
    parts = {name: data(conv_net, 80 + place) for place, name in enumerate(("evaluation", "holdout", "training"))}
    fusion = fuse(recipe_document(tmp_path / "in", modules, stages, seed=5, **parts), tmp_path / "out")
    result = fuse_modules(modules, stages=stages, data=parts, seed=5)
    found = read_output(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in result.module.state_dict().items())
    assert result.trace.metadata["verdict"] == fusion.verdict


class Ending(Recording):
    """Ends the run once so many decisions were taken; keeps what it was told of an earlier one."""

    def __init__(self, after: int | None = None) -> None:
        super().__init__()
        self.taken_over = 0
        self._after = after
        self._seen = 0

    def decision(self, decision: Decision) -> None:
        super().decision(decision)
        self._seen += 1

    def resumed(self, decisions: int) -> None:
        self.taken_over = decisions

    def should_stop(self) -> bool:
        return self._after is not None and self._seen >= self._after


def known(decision: Decision) -> tuple[Any, ...]:
    """All of a decision but its time."""
    return tuple(getattr(decision, name) for name in Decision.__slots__ if name != "elapsed")


@pytest.mark.parametrize(("after", "taken_over"), [(8, 6), (12, 12), (15, 12), (18, 18), (21, 21)])
def test_a_run_that_ended_anywhere_goes_on_after_the_last_whole_phase(
    tmp_path: Path, after: int, taken_over: int
) -> None:
    """6 tensors: linear 0–5, kickoff 6–11, fine-tuning 12–17, then CoGraM."""
    parts = {name: data(mlp, 80 + place) for place, name in enumerate(("evaluation", "holdout", "training"))}
    document = recipe_document(tmp_path / "in", specialists(4), ["linear", FINE, NEURON], guard="report", **parts)
    fuse(document, tmp_path / "whole")
    journal = tmp_path / "journal"
    with pytest.raises(FusionStopped):
        fuse(document, tmp_path / "ended", observer=Ending(after), journal=journal)
    observer = Ending()
    fuse(document, tmp_path / "again", observer=observer, earlier=[journal])
    assert observer.taken_over == taken_over
    assert checkpoint_bytes(tmp_path / "again") == checkpoint_bytes(tmp_path / "whole")
    traces = [Trace(tmp_path / name / "trace.parquet") for name in ("again", "whole")]
    first, second = ([known(decision) for decision in trace.decisions()] for trace in traces)
    assert first == second
    assert traces[0].metadata["verdict"] == traces[1].metadata["verdict"]
