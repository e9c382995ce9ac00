"""The search by itself, on functions whose best is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogram_core.calibration.settings import QUANTILES, Search, Setting, thresholds
from cogram_core.methods.cogram.params import Params
from cogram_core.recipe import Recipe

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
    none, *found = thresholds([*spreads, float("inf")], "absolute")
    assert none["refinement"] == "passes"
    assert len(found) > 5
    for change in found:
        assert (change["refinement"], change["tau_scale"]) == ("thresholds", "absolute")
        Params(granularity="neuron", **replace(OWN, **change).parameters())
    half = found[QUANTILES.index((None, 0.5))]
    assert half["tau_min"] == 0
    assert half["tau_max"] == pytest.approx(float(np.median(spreads)), rel=1e-3)


def test_without_a_finite_spread_only_passes_are_left() -> None:
    assert [change["refinement"] for change in thresholds([float("inf")], "share")] == ["passes"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"refinement": "thresholds", "tau_min": 0.2, "tau_max": 0.4, "tau_scale": "absolute"},
        {"refinement": "thresholds", "tau": "auto", "tau_scale": "absolute"},
        {"preset": "paper"},
        {"preset": "paper", "tau": "auto", "granularity": "weight"},
        {"preset": "paper", "refinement": "passes"},
    ],
    ids=str,
)
def test_every_trials_parameters_are_accepted_as_they_stand_alone_and_in_their_stage(given: dict[str, Any]) -> None:
    asked: list[Setting] = []
    own = Setting.of(Params.model_validate(given))
    search(lambda setting: -float(asked.append(setting) is None and len(asked)), own)  # type: ignore[func-returns-value]
    assert {setting.refinement for setting in asked} == {"passes", "thresholds"}
    for setting in asked:
        for stage in ({}, given):
            document = {
                "sources": [{"name": name, "checkpoint": name} for name in "ab"],
                "data": {"evaluation": "e", "holdout": "h"},
                "stages": [{"method": "cogram", **stage, **setting.parameters()}],
            }
            parameters = Recipe.from_document(document).stages[-1].parameters
            assert Setting.of(Params.model_validate(parameters)) == setting


def test_a_few_trials_reach_every_parameter_the_nearest_values_first() -> None:
    asked: list[Setting] = []
    search(lambda setting: float(asked.append(setting) is None), limit=12)  # type: ignore[func-returns-value]
    changed = [
        {
            name
            for name in ("layer", "neuron", "weight", "competence", "tau_max")
            if getattr(one, name) != getattr(OWN, name)
        }
        for one in asked
    ]
    assert changed[1:5] == [{"weight"}, {"neuron"}, {"layer"}, {"competence"}]
    assert set().union(*changed) == {"layer", "neuron", "weight", "competence", "tau_max"}
    assert [one.neuron for one in asked if one.neuron != 1][:2] == [2, 0.5]
