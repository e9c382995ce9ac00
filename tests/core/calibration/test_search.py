"""The search by itself, on functions whose best is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogram_core.calibration.settings import Search, Setting, thresholds
from cogram_core.methods.cogram.params import Params

OWN = Setting.of(Params.model_validate({"steepness": {"layer": 5.5, "neuron": 1.0, "weight": 1.0}}))


def search(ask: Callable[[Setting], float], own: Setting = OWN, levels: int = 3, limit: int = 1000) -> Setting:
    return Search(own, ("layer", "neuron", "weight")[:levels], ask, limit).run(lambda: (0.1, 0.2, 0.4))


def test_a_valley_in_every_steepness_is_found() -> None:
    def ask(setting: Setting) -> float:
        off = (setting.layer / 11, setting.neuron / 0.25, setting.weight / 8)
        return sum(abs(float(np.log2(value))) for value in off) + abs(setting.competence - 0.5)

    best = search(ask)
    assert (best.layer, best.neuron, best.weight, best.competence) == (11, 0.25, 8, 0.5)


def test_parameters_that_depend_on_each_other_are_found_in_a_later_round() -> None:
    def ask(setting: Setting) -> float:
        return abs(setting.layer / 5.5 - setting.neuron) + 0.1 * abs(float(np.log2(setting.neuron / 8)))

    asked: list[Setting] = []
    best = search(lambda setting: asked.append(setting) or ask(setting), levels=2)  # type: ignore[func-returns-value]
    assert ask(best) == min(map(ask, asked))
    for factor in (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 32):  # no single change improves it
        assert ask(replace(best, layer=5.5 * factor)) >= ask(best)
        assert ask(replace(best, neuron=factor)) >= ask(best)


@settings(deadline=None, max_examples=25)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=60), limit=st.integers(1, 60))
def test_no_more_than_the_limit_is_asked_none_twice_and_the_first_least_wins(values: list[float], limit: int) -> None:
    asked: dict[Setting, float] = {}

    def ask(setting: Setting) -> float:
        assert setting not in asked
        asked[setting] = values[len(asked) % len(values)]
        return asked[setting]

    best = search(ask, limit=limit)
    assert len(asked) <= limit
    assert next(iter(asked)) == OWN
    assert best == next(setting for setting, value in asked.items() if value == min(asked.values()))


def test_a_steepness_of_zero_is_searched_around_the_default() -> None:
    tried: list[Setting] = []
    search(lambda setting: float(tried.append(setting) is None), replace(OWN, layer=0.0), levels=1)  # type: ignore[func-returns-value]
    assert {0.0, 5.5, 11.0} <= {setting.layer for setting in tried}


def test_one_number_for_every_level_is_taken_for_each() -> None:
    own = Setting.of(Params(steepness=7.0))
    assert (own.layer, own.neuron, own.weight) == (7.0, 7.0, 7.0)


@settings(deadline=None, max_examples=25)
@given(spreads=st.lists(st.floats(0, 1e6), min_size=1, max_size=12))
def test_thresholds_are_quantiles_of_the_spreads_and_make_valid_parameters(spreads: list[float]) -> None:
    found = list(thresholds(OWN, [*spreads, float("inf")]))
    assert found[0].refinement == "passes"
    assert all(setting.refinement == "thresholds" for setting in found[1:])
    for setting in found:
        Params(granularity="neuron", **setting.parameters())
    halves = [setting for setting in found[1:] if setting.tau_min == 0]
    assert halves[0].tau_max == pytest.approx(float(np.median(spreads)), rel=1e-3)
    assert len(found) > 5


def test_without_a_finite_spread_only_passes_are_left() -> None:
    assert [setting.refinement for setting in thresholds(OWN, [float("inf")])] == ["passes"]
