"""Promise 4, in the core: a run that is killed anywhere goes on from its journal and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cogram_core import fuse
from cogram_core import journal as journals
from cogram_core.errors import ReplayError
from cogram_core.journal import Journal, journal_identity, read_journal
from cogram_core.trace import Decision, Trace
from tests.core.factories import checkpoint_bytes, points, recipe_document, save_checkpoint, save_data, specialists
from tests.core.pipeline.recording import Recording, entries

ROOT = Path(__file__).parents[3]
LAYER = {"method": "cogram", "granularity": "layer", "prototypes": {"per_class": 2}}
NEURON = {**LAYER, "granularity": "neuron", "max_sweeps": {"layer": 1, "neuron": 1}}
STAGES: dict[str, list[Any]] = {
    "streamed": ["linear"],
    "linear": ["linear", "linear"],
    "fisher": ["fisher"],
    "layer": ["fisher", LAYER],
    "neuron": ["linear", "fisher", NEURON],
}
OTHERS: dict[str, list[Any]] = {
    "thresholds": ["linear", {**NEURON, "refinement": "thresholds", "tau_min": 0.01, "tau_max": 0.2}],
    "weight": ["linear", {**LAYER, "granularity": "weight", "max_sweeps": {"layer": 0, "neuron": 0, "weight": 1}}],
    "blockwise": ["linear", {**NEURON, "mode": "blockwise"}],
    "stopped": ["fisher", {**NEURON, "max_decisions": 20}],
    "finetune": ["fisher", {"method": "finetune", "kickoff_epochs": 2, "epochs": 2}],
    "align": [{"method": "align"}, {"method": "align", "match": "weights"}, "fisher"],
    "diverging": ["linear", {"method": "finetune", "kickoff_epochs": 1, "epochs": 1, "lr": 1e3, "kickoff_scale": 1e6}],
}
BATCH_ROWS = 3
UNCOMPARED: dict[str, Any] = {
    "elapsed": 0.0,
    "loss_before": None,
    "loss_sources": None,
    "spread": None,
    "loss_after": None,
}

# Each order is an output and a moment: how many stop points the run passes before it is killed. Forks of a process that
# has loaded torch and run nothing cost little.
KILLER = f"""
import json, os, signal, sys
import torch
from cogram_core import fuse, journal
from cogram_core.observer import SilentObserver

torch.func.vmap(torch.func.jacrev(lambda x, y: x * y), in_dims=(None, 0))(torch.ones(2), torch.ones(2, 2))
journal._BATCH_ROWS = {BATCH_ROWS}

class Killed(SilentObserver):
    def __init__(self, moment):
        self.left = moment

    def should_stop(self):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        fuse(order["recipe"], order["output"], observer=Killed(order["moment"]))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def kill() -> Iterator[Callable[[dict[str, Any], Path, int], None]]:
    """Runs a recipe in a process of its own that is killed at a given moment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", KILLER]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, env=environment, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def killed(document: dict[str, Any], output: Path, moment: int) -> None:
            order = {"recipe": document, "output": str(output), "moment": moment}
            print(json.dumps(order), file=process.stdin, flush=True)
            assert process.stdout is not None
            assert process.stdout.readline() == "-9\n"
            assert not output.exists()

        yield killed
        process.stdin.close()


class Undisturbed:
    """A recipe, and what a run of it gives that nobody disturbs."""

    def __init__(self, folder: Path, stages: list[Any]) -> None:
        data = {} if stages == ["linear"] else {"evaluation": points(90, 40), "holdout": points(91, 40)}
        if any("finetune" in stage["method"] for stage in stages if isinstance(stage, dict)):
            data["training"] = points(92, 40)
        guard = "best_on_holdout" if data else "off"
        self.document = recipe_document(folder / "in", specialists(6, 3), stages, **data, guard=guard, seed=17)
        self.journal = folder / "journal"
        heard = Recording()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journals, "_BATCH_ROWS", BATCH_ROWS)
            self.fusion = fuse(self.document, folder / "out", observer=heard, journal=self.journal)
        self.moments = heard.asked
        self.bytes = checkpoint_bytes(folder / "out")
        self.decisions = decisions(folder / "out")

    def assert_same(self, output: Path) -> None:
        """Another run ended as this one did, and left nothing else beside its output."""
        assert checkpoint_bytes(output) == self.bytes
        found = decisions(output)
        assert [replace(one, **UNCOMPARED) for one in found] == [replace(one, **UNCOMPARED) for one in self.decisions]
        assert [losses(one) for one in found] == [pytest.approx(losses(one), rel=1e-12) for one in self.decisions]
        assert json.loads((output / "report.json").read_text())["verdict"] == self.fusion.report["verdict"]
        assert [name for name in entries(output.parent) if name.endswith(".partial")] == []
        assert "trace.journal" not in entries(output)


def decisions(output: Path) -> list[Decision]:
    return list(Trace(output / "trace.parquet").decisions())


@pytest.fixture(scope="module", params=list(STAGES))
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp(request.param), STAGES[request.param])


def losses(decision: Decision) -> list[float]:
    """They may differ in their last digit: what a run keeps of its forward passes is not in the journal."""
    known = (decision.loss_before, *(decision.loss_sources or ()), decision.loss_after)
    return [loss for loss in known if loss is not None]


def recorded(journal: Path) -> int:
    """How many decisions a journal holds; none where the run did not get that far."""
    return sum(batch.num_rows for batch in read_journal(journal)) if journal.exists() else 0


def abandoned(output: Path, journal: bytes, name: str = "0123456789ab") -> Path:
    """The folder that a killed run would have left with such a journal."""
    folder = output.parent / f".{output.name}.{name}.partial"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"half")
    (folder / "trace.journal").write_bytes(journal)
    return folder


def test_a_run_killed_anywhere_ends_with_the_same_bytes_when_it_is_called_again(
    undisturbed: Undisturbed, kill: Callable[[dict[str, Any], Path, int], None], tmp_path: Path
) -> None:
    draw = random.Random(undisturbed.moments)
    for place, moment in enumerate([*draw.sample(range(undisturbed.moments), 2), undisturbed.moments - 1]):
        output = tmp_path / str(place) / "out"
        kill(undisturbed.document, output, moment)
        (left,) = output.parent.iterdir()
        known = recorded(left / "trace.journal")
        assert fuse(undisturbed.document, output).report["resumed_after"] <= known
        undisturbed.assert_same(output)


def test_a_run_killed_again_and_again_gets_there_in_the_end(
    undisturbed: Undisturbed, kill: Callable[[dict[str, Any], Path, int], None], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    for fraction in (0.7, 0.4):
        kill(undisturbed.document, output, int(undisturbed.moments * fraction))
    assert len(entries(tmp_path)) == 2
    fuse(undisturbed.document, output)
    undisturbed.assert_same(output)


def test_a_journal_cut_at_any_byte_is_gone_on_from(undisturbed: Undisturbed, tmp_path: Path) -> None:
    goes_on_from_cuts(undisturbed, tmp_path, 4)


@pytest.mark.parametrize("stages", OTHERS.values(), ids=list(OTHERS))
def test_every_way_of_deciding_goes_on_from_its_journal(stages: list[Any], tmp_path: Path) -> None:
    goes_on_from_cuts(Undisturbed(tmp_path / "run", stages), tmp_path, 3)


def goes_on_from_cuts(undisturbed: Undisturbed, tmp_path: Path, cuts: int) -> None:
    raw = undisturbed.journal.read_bytes()
    draw = random.Random(len(raw))
    for place, length in enumerate([len(raw), *draw.sample(range(len(raw)), cuts)]):
        output = tmp_path / str(place) / "out"
        journal = abandoned(output, raw[:length]) / "trace.journal"
        known = recorded(journal)
        report = fuse(undisturbed.document, output).report
        assert report["resumed_after"] <= known
        assert bool(report["ignored_journals"]) == (known == 0)
        undisturbed.assert_same(output)


def test_whole_stages_are_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = Undisturbed(tmp_path, STAGES["neuron"])
    abandoned(tmp_path / "again", undisturbed.journal.read_bytes())

    def forbidden(*_: Any) -> None:
        raise AssertionError("the Fisher information is on record")

    monkeypatch.setattr("cogram_core.methods.fisher.diagonal_fisher", forbidden)
    heard = Recording()
    report = fuse(undisturbed.document, tmp_path / "again", observer=heard).report
    merged = sum(one.kind == "tensor" for one in undisturbed.decisions)
    assert report["resumed_after"] >= merged
    assert ("resumed", report["resumed_after"]) in heard.calls
    assert [call[1].seq for call in heard.calls if call[0] == "decision"] == [one.seq for one in undisturbed.decisions]
    # What was taken over keeps its time, and the clock goes on from there.
    times = [one.elapsed for one in decisions(tmp_path / "again")]
    assert times[:merged] == [one.elapsed for one in undisturbed.decisions[:merged]]
    assert times == sorted(times)
    undisturbed.assert_same(tmp_path / "again")


@pytest.fixture(scope="module")
def fisher(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("one"), ["fisher"])


@pytest.mark.parametrize("bit", [0, 3])
def test_a_damaged_journal_is_read_up_to_the_damage(fisher: Undisturbed, tmp_path: Path, bit: int) -> None:
    raw = bytearray(fisher.journal.read_bytes())
    payload = fisher.decisions[-1].payload
    assert payload is not None
    raw[raw.index(payload) + 1] ^= 1 << bit
    journal = abandoned(tmp_path / "out", bytes(raw)) / "trace.journal"
    assert recorded(journal) == BATCH_ROWS
    assert fuse(fisher.document, tmp_path / "out").report["resumed_after"] == 0  # half a stage is none
    fisher.assert_same(tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"not a journal", bytes(4096)])
def test_what_is_no_journal_is_ignored(fisher: Undisturbed, tmp_path: Path, content: bytes) -> None:
    abandoned(tmp_path / "out", content)
    report = fuse(fisher.document, tmp_path / "out").report
    assert "not a readable journal" in report["ignored_journals"][0]
    fisher.assert_same(tmp_path / "out")


@pytest.mark.parametrize("stages", [["fisher", "fisher"], OTHERS["finetune"]], ids=["merging", "training"])
def test_decisions_that_stand_in_another_stages_place_are_refused(tmp_path: Path, stages: list[Any]) -> None:
    undisturbed = Undisturbed(tmp_path, stages)
    with undisturbed.journal.open("rb") as file:
        journal = Journal(tmp_path / "crafted", journal_identity(file))
    for one in undisturbed.decisions:
        journal.append(replace(one, stage=0))
    journal.close()
    with pytest.raises(ReplayError) as caught:
        fuse(undisturbed.document, tmp_path / "again", earlier=[journal.path])
    (problem,) = caught.value.problems
    assert (problem.location, problem.code) == ("journal", "resume.other_stage")
    assert "is of stage 0, and stage 1 is to go on" in problem.message
    assert not (tmp_path / "again").exists()


def test_the_longest_of_several_journals_is_taken(fisher: Undisturbed, tmp_path: Path) -> None:
    raw = fisher.journal.read_bytes()
    for place, length in enumerate((len(raw) // 2, len(raw), 0)):
        abandoned(tmp_path / "out", raw[:length], f"{place:012x}")
    assert fuse(fisher.document, tmp_path / "out").report["resumed_after"] == len(fisher.decisions)
    fisher.assert_same(tmp_path / "out")


def test_a_run_goes_on_from_the_very_file_that_it_writes_its_own_journal_to(
    fisher: Undisturbed, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    journal.write_bytes(fisher.journal.read_bytes())
    report = fuse(fisher.document, tmp_path / "out", journal=journal, earlier=[journal]).report
    assert report["resumed_after"] == len(fisher.decisions)
    assert recorded(journal) == len(fisher.decisions)
    fisher.assert_same(tmp_path / "out")


def other_source(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    """The same names, other numbers behind one of them."""
    shutil.rmtree(folder / "source-1")
    module = specialists(60, 1)[0]
    assert isinstance(module, torch.nn.Sequential)
    save_checkpoint(folder / "source-1", module)
    return document


def other_data(folder: Path, document: dict[str, Any]) -> dict[str, Any]:
    save_data(folder / "evaluation.safetensors", points(95, 40))
    return document


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda folder, document: {**document, "seed": 3}, "another recipe"),
        (lambda folder, document: {**document, "stages": [{"method": "fisher", "examples": 5}]}, "another recipe"),
        (other_source, "another sources"),
        (other_data, "another data"),
    ],
    ids=["seed", "stage", "source", "data"],
)
def test_a_journal_of_another_run_is_ignored(
    tmp_path: Path, other: Callable[[Path, dict[str, Any]], dict[str, Any]], reason: str
) -> None:
    first = Undisturbed(tmp_path, ["fisher"])
    changed = other(tmp_path / "in", first.document)
    expected = fuse(changed, tmp_path / "expected")
    report = fuse(changed, tmp_path / "found", earlier=[first.journal]).report
    assert report["resumed_after"] == 0
    assert reason in report["ignored_journals"][0]
    assert checkpoint_bytes(tmp_path / "found") == checkpoint_bytes(expected.output)
    assert first.journal.exists()


def test_two_living_runs_of_one_output_leave_each_other_alone(fisher: Undisturbed, tmp_path: Path) -> None:
    """The second begins and ends while the first is in the middle of its work."""
    output = tmp_path / "out"

    class Meddling(Recording):
        def decision(self, decision: Decision) -> None:
            if decision.seq == 1:
                (own,) = entries(tmp_path)
                assert fuse(fisher.document, output).report["resumed_after"] == 0
                assert checkpoint_bytes(output) == fisher.bytes
                assert entries(tmp_path) == [own, "out"]
                shutil.rmtree(output)

    fuse(fisher.document, output, observer=Meddling())
    fisher.assert_same(output)
