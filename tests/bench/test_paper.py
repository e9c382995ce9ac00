"""The experiments' machinery: answers are kept, tables and figures say what was found."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bench.paper import plotting, storing
from bench.paper.asking import FISHER, Asking, accuracies
from bench.paper.experiments import kickoff, layer_level
from bench.paper.measuring import fusion, training
from bench.paper.storing import Answer, Question, answer
from bench.paper.tables import differences, markdown, paired, spread, standard_error


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Asking:
    folder = tmp_path_factory.mktemp("paper")
    return Asking(range(1), folder / "kept", folder / "figures")


def test_a_stopped_run_goes_on_where_it_stopped_and_another_question_is_measured_anew(tmp_path: Path) -> None:
    asked = []

    def measure(question: Question) -> Answer:
        asked.append(question["seed"])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"test": question["seed"] / 3}

    with pytest.raises(KeyboardInterrupt):
        Asking(range(5), tmp_path).ask(measure, setting="a")
    assert accuracies(Asking(range(5), tmp_path).ask(measure, setting="a")) == [seed / 3 for seed in range(5)]
    assert asked == [0, 1, 2, 2, 3, 4]
    answer(measure, {"setting": "b", "seed": 0}, tmp_path)
    assert asked[6:] == [0]


def test_what_was_measured_depends_on_all_code_of_the_core() -> None:
    code = {path for kind in ("py", "c", "h") for path in (storing._ROOT / "cogram_core").rglob(f"*.{kind}")}
    assert any(path.suffix == ".c" for path in code)
    assert code < {path for pattern in storing._MEASURED_BY for path in storing._ROOT.glob(pattern)}


def test_means_deviations_and_errors_are_those_of_numpy() -> None:
    values, others = [81.25, 90.5, 77.0, 85.75], [80.0, 91.5, 70.25, 85.5]
    apart = np.array(values) - np.array(others)
    error = apart.std(ddof=1) / math.sqrt(4)
    assert differences(values, others) == pytest.approx(list(apart))
    assert standard_error(list(apart)) == pytest.approx(error)
    assert spread(values) == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"
    assert paired(values, others) == f"{apart.mean():+.2f} ± {error:.2f} (-1.0)"
    assert spread([81.25]) == "81.2"
    assert paired([81.25], [80.0]) == "+1.25"


def test_a_table_has_as_many_cells_in_every_line() -> None:
    assert markdown(["", "a"], [["x", "1"], ["y", "2"]]) == "|  | a |\n| --- | --- |\n| x | 1 |\n| y | 2 |"


def test_a_figure_is_the_same_bytes_on_every_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        figure, (axes,) = plotting.panels(1, 3, 2)
        plotting.curve(axes, [0, 1], [[1.0, 2.0], [3.0, 5.0]], "a line", 0)
        axes.legend()
        plotting.save(figure, tmp_path / name, "figure")
    for kind in ("png", "svg"):
        first, second = (tmp_path / name / f"figure.{kind}" for name in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()


def test_training_for_no_epochs_leaves_the_fused_network_as_it_is() -> None:
    question = {"setting": "digits-mlp", "seed": 0, "stages": list(FISHER), "guard": "report"}
    trained = training({**question, "kickoff": 0, "epochs": [0], "lr": 1e-3, "batch_size": 64})
    assert trained["test"] == [fusion(question)["test"]]


@pytest.mark.parametrize("name", ["layer", "kickoff"])
def test_an_experiment_gives_a_table_and_small_figures(asking: Asking, name: str) -> None:
    if name == "layer":
        table, rows = layer_level.run(asking, ["digits-mlp"], "layer"), 1
    else:
        table, rows = kickoff.run(asking, ["digits-mlp"]), 2
    lines = table.splitlines()
    assert len(lines) == 2 + rows
    assert len({line.count("|") for line in lines}) == 1
    for kind in ("png", "svg"):
        assert 1000 < (asking.figures / f"{name}.{kind}").stat().st_size < 60_000
