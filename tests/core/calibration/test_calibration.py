"""A calibration's table against fusions of its own: every row, the choice, and the recipe that is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import cogram_core
from cogram_core.calibration import Calibration
from cogram_core.errors import FusionStopped, InvalidInput, OutputError
from tests.core.factories import checkpoint_bytes, mlp, points, recipe_document, specialists
from tests.core.pipeline.recording import Recording, entries

STAGES = [{"method": "fisher", "examples": 8}, {"method": "cogram", "granularity": "neuron"}]
EVALUATION, HOLDOUT = points(7, 40), points(8, 30)


def document(folder: Path, stages: list[dict[str, Any]] = STAGES, **rest: Any) -> dict[str, Any]:
    modules = specialists(3, build=lambda seed: mlp(seed, (6, 5, 4)))
    return recipe_document(folder, modules, stages, evaluation=EVALUATION, holdout=HOLDOUT, **rest)


def rows(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((output / "calibration.json").read_text())["trials"]
    return found


def without_clock(output: Path) -> dict[str, Any]:
    table = json.loads((output / "calibration.json").read_text())
    for trial in table["trials"]:
        del trial["seconds"]
    return dict(table)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibration")


@pytest.fixture(scope="module")
def recipe(folder: Path) -> dict[str, Any]:
    return document(folder)


@pytest.fixture(scope="module")
def calibration(folder: Path, recipe: dict[str, Any]) -> Calibration:
    return cogram_core.calibrate(recipe, folder / "calibrated", trials=20)


def test_every_row_is_what_a_fusion_of_its_own_gives(
    folder: Path, recipe: dict[str, Any], calibration: Calibration, tmp_path: Path
) -> None:
    assert any(trial.setting.refinement == "thresholds" for trial in calibration.trials)
    for trial in rows(calibration.output):
        stage = recipe["stages"][1] | trial["parameters"]
        alone = recipe | {"stages": [recipe["stages"][0], stage], "guard": "report"}
        fusion = cogram_core.fuse(alone, tmp_path / str(trial["number"]))
        last = fusion.verdict["candidates"][-1]
        assert (trial["evaluation"], trial["holdout"]) == (last["evaluation"], last["holdout"])
        decided = [layer for layer in fusion.report["layers"] if layer["stage"] == 1]
        assert trial["accepted"] == sum(layer["merged"] for layer in decided)
        assert trial["rolled_back"] == sum(layer["rolled_back"] for layer in decided)


def test_the_first_trial_is_the_recipe_as_it_is_and_no_setting_is_tried_twice(calibration: Calibration) -> None:
    own = calibration.trials[0].setting.parameters()
    resolved = cogram_core.Recipe.from_document({"method": "cogram"} | _anything()).stages[1].parameters
    assert own == {name: resolved[name] for name in own}
    assert len({trial.setting for trial in calibration.trials}) == len(calibration.trials) <= 20


def _anything() -> dict[str, Any]:
    sources = [{"name": name, "checkpoint": name} for name in "ab"]
    return {"sources": sources, "data": {"evaluation": "e", "holdout": "h"}}


def test_the_best_is_the_first_with_the_least_evaluation_figure_and_holdout_has_no_part_in_it(
    calibration: Calibration, recipe: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    figures = [trial["evaluation"]["calibrated_loss"] for trial in rows(calibration.output)]
    assert calibration.best.number == figures.index(min(figures))
    assert calibration.best.number != 0
    other = document(tmp_path / "other") | {"data": recipe["data"]}
    other["data"] = other["data"] | {"holdout": str(_shifted(tmp_path))}
    again = cogram_core.calibrate(other, tmp_path / "out", trials=20)
    assert [trial.setting for trial in again.trials] == [trial.setting for trial in calibration.trials]
    assert again.best.setting == calibration.best.setting
    assert again.best.holdout != calibration.best.holdout


def _shifted(folder: Path) -> Path:
    """Holdout data on which everything is wrong."""
    from tests.core.factories import save_data

    inputs, targets = points(9, 30)
    return save_data(folder / "shifted.safetensors", (inputs, (targets + 1) % 4))


def test_accuracy_as_the_guards_criterion_chooses_the_most_accurate(tmp_path: Path) -> None:
    guard = {"mode": "best_on_holdout", "criterion": "accuracy"}
    found = cogram_core.calibrate(document(tmp_path, guard=guard), tmp_path / "out", trials=8)
    figures = [trial["evaluation"]["accuracy"] for trial in rows(tmp_path / "out")]
    assert found.best.number == figures.index(max(figures))


def test_the_written_recipe_fuses_to_the_same_bytes_as_the_best_trials_parameters(
    recipe: dict[str, Any], calibration: Calibration, tmp_path: Path
) -> None:
    best = rows(calibration.output)[calibration.best.number]
    stage = recipe["stages"][1] | best["parameters"]
    cogram_core.fuse(recipe | {"stages": [recipe["stages"][0], stage]}, tmp_path / "by-hand")
    cogram_core.fuse(calibration.output / "recipe.calibrated.yaml", tmp_path / "by-file")
    assert checkpoint_bytes(tmp_path / "by-hand") == checkpoint_bytes(tmp_path / "by-file")


def test_the_same_recipe_gives_the_same_table(recipe: dict[str, Any], calibration: Calibration, tmp_path: Path) -> None:
    cogram_core.calibrate(recipe, tmp_path / "again", trials=20)
    assert without_clock(tmp_path / "again") == without_clock(calibration.output)


def test_the_csv_has_the_tables_figures(calibration: Calibration) -> None:
    with (calibration.output / "calibration.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["trial"] for row in table if row["best"] == "1"] == [str(calibration.best.number)]
    for row, trial in zip(table, rows(calibration.output), strict=True):
        assert float(row["steepness_neuron"]) == trial["parameters"]["steepness"]["neuron"]
        assert row["tau_max"] == ("" if (high := trial["parameters"]["tau_max"]) is None else str(high))
        assert float(row["holdout_accuracy"]) == trial["holdout"]["accuracy"]
    assert entries(calibration.output) == ["calibration.csv", "calibration.json", "recipe.calibrated.yaml"]


def test_at_layer_level_thresholds_and_finer_steepness_take_no_part(tmp_path: Path) -> None:
    stages = [STAGES[0], {"method": "cogram", "granularity": "layer"}]
    found = cogram_core.calibrate(document(tmp_path, stages), tmp_path / "out")
    assert {trial.setting.refinement for trial in found.trials} == {"passes"}
    assert {(trial.setting.neuron, trial.setting.weight) for trial in found.trials} == {(3.0, 1.0)}
    assert len({trial.setting.layer for trial in found.trials}) > 5


def test_only_the_named_one_of_several_stages_is_changed(tmp_path: Path) -> None:
    stages = [STAGES[0], {"method": "cogram", "steepness": 3.0}, {"method": "cogram", "granularity": "neuron"}]
    recipe = document(tmp_path, stages)
    with pytest.raises(InvalidInput) as caught:
        cogram_core.calibrate(recipe, tmp_path / "out")
    assert [problem.code for problem in caught.value.problems] == ["calibration.which_stage"]
    found = cogram_core.calibrate(recipe, tmp_path / "out", stage=1, trials=3)
    before = cogram_core.Recipe.from_document(recipe).stages
    assert (found.recipe.stages[0], found.recipe.stages[2]) == (before[0], before[2])
    assert [trial.setting.layer for trial in found.trials] == [3.0, 3.0, 6.0]


@pytest.mark.parametrize("guarded", [None, 1, 2])
def test_holdout_is_unseen_only_if_no_stages_moves_are_held_against_it(tmp_path: Path, guarded: int | None) -> None:
    cogram = {"method": "cogram", "granularity": "layer"}
    stages = [STAGES[0], *(cogram | {"unit_guard": place == guarded} for place in (1, 2))]
    found = cogram_core.calibrate(document(tmp_path, stages), tmp_path / "out", stage=1, trials=1)
    assert found.holdout_unseen == (guarded is None)
    assert ("no decision and no choice has seen" in found.summary) == (guarded is None)


def test_everything_that_keeps_a_recipe_from_being_calibrated_is_told_at_once(tmp_path: Path) -> None:
    recipe = recipe_document(tmp_path, [mlp(0), mlp(1)], ["linear"], guard="off")
    with pytest.raises(InvalidInput) as caught:
        cogram_core.calibrate(recipe, tmp_path / "out", trials=0)
    assert {problem.location: problem.code for problem in caught.value.problems} == {
        "stages": "calibration.no_stage",
        "data.evaluation": "recipe.missing_evaluation",
        "data.holdout": "recipe.missing_holdout",
        "trials": "calibration.too_few_trials",
    }
    with pytest.raises(InvalidInput) as caught:
        cogram_core.calibrate(document(tmp_path / "good"), tmp_path / "out", stage=0)
    assert [problem.location for problem in caught.value.problems] == ["stage"]
    assert not (tmp_path / "out").exists()


def test_a_stopped_calibration_writes_nothing(recipe: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FusionStopped):
        cogram_core.calibrate(recipe, tmp_path / "out", observer=Recording(stop_at=200))
    assert entries(tmp_path) == []


def test_what_a_killed_calibration_left_is_cleared_away_by_the_next(recipe: dict[str, Any], tmp_path: Path) -> None:
    left = tmp_path / ".out.0123456789ab.partial" / "tmp"
    left.mkdir(parents=True)
    (left / "trace.journal").write_bytes(b"rows")
    cogram_core.calibrate(recipe, tmp_path / "out", trials=1)
    assert entries(tmp_path) == ["out"]


def test_a_folder_with_something_in_it_is_refused_before_the_first_trial(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "mine").touch()
    heard = Recording()
    with pytest.raises(OutputError):
        cogram_core.calibrate(recipe, tmp_path, observer=heard)
    assert heard.calls == []
    assert entries(tmp_path) == ["mine"]


def test_the_observer_hears_of_one_stage_and_each_trial(recipe: dict[str, Any], tmp_path: Path) -> None:
    heard = Recording()
    found = cogram_core.calibrate(recipe, tmp_path / "out", trials=4, observer=heard)
    kinds = [call[0] for call in heard.calls]
    assert kinds == ["started", "progress", "progress", "progress", "progress", "finished"]
    assert [call[2:] for call in heard.calls if call[0] == "progress"] == [(done + 1, 4) for done in range(4)]
    assert len(found.trials) == 4
