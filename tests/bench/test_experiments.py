"""What is measured, against plain torch; and what the experiments' tables make of answers that are known."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.paper.asking import FISHER, Asking
from bench.paper.experiments import competence, levels, prototypes, thresholds
from bench.paper.measuring import correlations, fusion, sources, task_of
from bench.paper.storing import Answer, Question
from bench.tasks import Task
from cogram_core import fuse_modules

ASKED = {"setting": "digits-mlp", "seed": 0}


@pytest.fixture(scope="module")
def task() -> Task:
    return task_of("digits-mlp", 0)


def own_accuracies(network: nn.Module, task: Task) -> list[float]:
    """By half of the classes: skewed digits are cut at 5."""
    inputs, targets = task.test
    right = network(inputs).argmax(dim=1) == targets
    return [100 * float(right[half].double().mean()) for half in (targets < 5, targets >= 5)]


def test_each_source_is_scored_on_all_classes_and_on_its_own(task: Task) -> None:
    found = sources(ASKED)
    inputs, targets = task.evaluation
    for place, network in enumerate(task.networks):
        right = network(task.test[0]).argmax(dim=1) == task.test[1]
        assert found["test"][place] == pytest.approx(100 * float(right.double().mean()))
        assert found["own"][place] == pytest.approx(own_accuracies(network, task)[place])
        loss = float(nn.functional.cross_entropy(network(inputs), targets).detach())
        assert found["loss"][place] == pytest.approx(loss, rel=1e-5)


def test_a_fusion_is_scored_on_test_data_and_its_shares_are_means_over_decisions(task: Task) -> None:
    stages = ["fisher", {"method": "cogram", "granularity": "neuron", "max_sweeps": {"layer": 1, "neuron": 1}}]
    found = fusion({**ASKED, "stages": stages, "guard": "report"})
    module, trace = fuse_modules(task.networks, stages=stages, data=task.data, guard="report", threads=1)
    right = module(task.test[0]).argmax(dim=1) == task.test[1]
    assert found["test"] == pytest.approx(100 * float(right.double().mean()))
    assert found["own"] == pytest.approx(own_accuracies(module, task))
    rows = [row for row in trace.decisions() if row.method == "cogram"]
    assert (found["decisions"], found["accepted"]) == (len(rows), sum(row.action == "merged" for row in rows))
    first = torch.tensor([row.shares[0] for row in rows if row.shares is not None], dtype=torch.float64)
    assert found["shares"] == pytest.approx([float(first.mean()), 1 - float(first.mean())])
    assert found["holdout"] == trace.metadata["verdict"]["candidates"][-1]["holdout"]["calibrated_loss"]


def test_correlations_are_those_of_neurons_put_in_one_by_one(task: Task) -> None:
    start, _ = fuse_modules(task.networks, stages=list(FISHER), data=task.data, guard="report", threads=1)

    def effects(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found = []
        for layer in (0, 2, 4):
            for row in range(len(start.state_dict()[f"{layer}.weight"])):
                scores = []
                for source in task.networks:
                    state = copy.deepcopy(start.state_dict())
                    for name in (f"{layer}.weight", f"{layer}.bias"):
                        state[name][row] = source.state_dict()[name][row]
                    outputs = torch.func.functional_call(start, state, (inputs,)).detach().double()
                    wrong = (outputs.argmax(dim=1) != targets).double().mean()
                    scores.append(torch.stack([nn.functional.cross_entropy(outputs, targets), wrong]))
                found.append(scores[1] - scores[0])
        return torch.stack(found)

    seen, effect = effects(*task.evaluation)[:, 0], effects(*task.test)
    found = correlations({**ASKED, "prototypes": [{"kind": "all"}]})
    for place, name in enumerate(("loss", "accuracy")):
        expected = torch.corrcoef(torch.stack([seen, effect[:, place]]))[0, 1]
        assert found[name] == [pytest.approx(float(expected), rel=1e-5)]


@dataclass(frozen=True)
class Told(Asking):
    """Seeds whose answers are known beforehand."""

    answers: Callable[[Question], Answer] = field(default=lambda _: {})

    def ask(self, measure: Callable[[Question], Answer], **question: Any) -> list[Answer]:
        return [self.answers({"measure": measure.__name__, **question, "seed": seed}) for seed in self.seeds]


def told(folder: Path, count: int, answers: Callable[[Question], Answer]) -> Told:
    return Told(range(count), folder, folder, answers)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_levels_are_compared_with_fisher_and_with_the_level_before_and_seconds_are_medians(tmp_path: Path) -> None:
    def answers(question: Question) -> Answer:
        stage = question["stages"][-1]
        level = 0 if stage == "fisher" else 1 + levels.LEVELS.index(stage["granularity"])
        return {"test": 70.0 + level**2, "accepted": 5, "cpu_seconds": [1.0, 2.0, 4.0, 9.0][question["seed"]]}

    rows = cells(levels.synthetic(told(tmp_path, 4, answers)))
    assert [row[1:3] for row in rows[:3]] == [
        ["layer", "71.0 ± 0.0"],
        ["neuron", "74.0 ± 0.0"],
        ["weight", "79.0 ± 0.0"],
    ]
    assert [row[3][:5] for row in rows[:3]] == ["+1.00", "+4.00", "+9.00"]
    assert [row[4][:5] for row in rows[:3]] == ["+1.00", "+3.00", "+5.00"]
    assert {row[6] for row in rows} == {"3.0"}


def test_the_better_source_is_the_one_with_the_lower_evaluation_loss_seed_by_seed(tmp_path: Path) -> None:
    def answers(question: Question) -> Answer:
        swapped = question["seed"] == 1
        if question["measure"] == "sources":
            return {"loss": [0.5, 0.25] if swapped else [0.25, 0.5]}
        shares = [] if question["stages"] == list(FISHER) else ([0.1, 0.9] if swapped else [0.9, 0.1])
        return {"test": 75.0, "own": [60.0, 90.0] if swapped else [90.0, 60.0], "shares": shares}

    rows = cells(competence.run(told(tmp_path, 2, answers)))
    assert {tuple(row[3:6]) for row in rows} == {("75.0 ± 0.0", "60.0 ± 0.0", "90.0 ± 0.0")}
    assert {row[6] for row in rows if row[1] != "Fisher"} == {"0.900 ± 0.000"}


def test_the_best_of_the_grid_is_chosen_by_holdout_and_not_by_test(tmp_path: Path) -> None:
    """λ 1 is best on the first seed's holdout data and λ 30 on the second's; on test data λ 5.5 is best on both."""

    def answers(question: Question) -> Answer:
        stage = question["stages"][-1]
        steepness = stage.get("steepness", 0) if isinstance(stage, dict) else 0
        if not isinstance(steepness, float):
            return {"test": 50.0, "holdout": 9.0}
        liked = steepness == (1.0, 30.0)[question["seed"]]
        return {"test": {1.0: 60.0, 5.5: 90.0, 30.0: 70.0}[steepness], "holdout": 0.1 if liked else 0.2}

    rows = {row[1]: row[2] for row in cells(thresholds.run(told(tmp_path, 2, answers)))}
    assert rows["best of the grid on holdout, seed by seed"] == "65.0 ± 7.1"
    (best,) = [name for name in rows if "on test data" in name]
    assert "λ 5.5" in best
    assert rows[best] == "90.0 ± 0.0"


def test_each_set_of_prototypes_has_its_own_correlation(tmp_path: Path) -> None:
    def answers(question: Question) -> Answer:
        if question["measure"] == "correlations":
            count = len(question["prototypes"])
            return {name: [place / 100 for place in range(count)] for name in ("loss", "accuracy")}
        return {"test": 80.0}

    rows = cells(prototypes.run(told(tmp_path, 1, answers)))
    assert [row[4] for row in rows] == [f"{place / 100:.2f}" for place in range(17)]
    assert [row[:2] for row in rows[:2]] == [["geometric", "1"], ["geometric", "4"]]
    assert rows[-1][0] == "all"
