"""What the quality benchmark says of its measurements, and that it knows what another guard would write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench import quality
from bench.quality import ABLATIONS, DEFAULTS, GUARDS, INPUTS, TRAINED, Condition, Measured, conditions
from bench.tasks import SETTINGS, Task, load
from cogram_core import fuse_modules

Run = dict[str, Measured]


def run(defaults: float, fisher: float, better: float = 0.0) -> Run:
    values = {"better source": better, "plain average": 0.0, "Fisher": fisher, DEFAULTS: defaults, TRAINED: 99.0}
    return {name: Measured(value, seconds) for seconds, (name, value) in enumerate(values.items())}


def held(runs: list[Run], skewed: bool = True) -> list[bool]:
    return [condition.holds for condition in conditions(runs, skewed)]


def test_each_condition_fails_by_itself_and_only_beyond_its_bound() -> None:
    assert held([run(82, 80), run(83, 80)]) == [True, True, True]
    assert held([run(79.5, 80), run(90, 80)], skewed=False) == [True, True]
    assert held([run(79.25, 80), run(80, 80)], skewed=False) == [False, True]
    assert held([run(82, 80, 83), run(82, 80, 82)]) == [True, True, True]
    assert held([run(82, 80, 83.25), run(82, 80, 82)]) == [True, True, False]
    # Gains of 1 and 3: mean 2, standard error 1. Twice that is not more than twice that.
    assert held([run(81, 80), run(83, 80)]) == [True, False, True]
    assert held([run(81, 80), run(83, 80)], skewed=False) == [True, True]


def test_a_condition_says_in_words_whether_it_holds() -> None:
    assert Condition("a", True, "+1").line == "- a: holds (+1)"
    assert Condition("a", False, "-1").line == "- a: DOES NOT HOLD (-1)"


def test_the_tables_figures_are_numpys() -> None:
    runs = [run(82, 80, 81), run(85.5, 80.5, 86), run(83, 81, 79)]
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in quality.main_table(runs)[2:]}
    assert list(lines) == [*INPUTS, DEFAULTS, TRAINED]
    values, gains, below = np.array([82, 85.5, 83]), np.array([2, 5, 2]), np.array([1, -0.5, 2])
    spread = f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"
    paired = f"{gains.mean():+.2f} ± {gains.std(ddof=1) / np.sqrt(3):.2f}"
    assert lines[DEFAULTS] == f"| {DEFAULTS} | {spread} | {paired} | {gains.min():+.2f} | {below.min():+.2f} | 3.00 |"


def test_what_was_not_measured_in_a_setting_is_a_dash_in_the_ablations() -> None:
    measured = run(82, 80) | {name: Measured(81.0) for name in (*ABLATIONS, *GUARDS)}
    measured[quality.WEIGHTS[0]] = Measured(81.0, 4.5)
    missing = {name: value for name, value in measured.items() if name not in quality.WEIGHTS}
    table = quality.ablation_table({"skewed-same": [measured, measured], "digits-cnn": [missing, missing]})
    assert f"| {quality.WEIGHTS[0]} | 81.0 (+1.0) | – | 4.5 |" in table
    assert f"| {DEFAULTS} | 82.0 (+2.0) | 82.0 (+2.0) | 3.0 |" in table


@pytest.fixture(scope="module")
def task() -> Task:
    return load(SETTINGS["digits-mlp"], 0)


@pytest.mark.parametrize("stages", [["fisher", "cogram"], ["fisher", {"method": "cogram", "preset": "paper"}]], ids=str)
def test_what_another_guard_writes_is_known_from_the_first_ones_scores(task: Task, stages: list[Any]) -> None:
    def verdict(guard: Any) -> Any:
        _, trace = fuse_modules(task.networks, stages=stages, data=task.data, guard=guard)
        return trace.metadata["verdict"]

    first = verdict("best_on_holdout")
    for guard in GUARDS.values():
        assert quality._choice(first, guard) == verdict(guard)["written"], guard


def test_make_bench_hears_of_a_condition_that_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome(defaults: float) -> int:
        monkeypatch.setattr(quality, "load", lambda setting, seed: (setting, seed))
        monkeypatch.setattr(quality, "measure", lambda _: (run(defaults, 80), {}))
        monkeypatch.setattr(quality, "ablate", lambda _, found, __: found)
        monkeypatch.setattr(quality, "ablation_table", lambda _: [])
        return quality.main()

    assert outcome(82) == 0
    assert outcome(79) == 1
