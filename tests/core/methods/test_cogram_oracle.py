"""The engine takes the oracle's decisions, in the oracle's order."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cogram_core import fuse_modules
from cogram_core.determinism import repeatable
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.prototypes import PrototypeParams, make_prototypes
from cogram_core.trace import Decision
from tests.core.factories import Pair, conv_net, mlp, points, specialists
from tests.core.methods.families import FAMILIES, Family
from tests.core.methods.naive_prototypes import naive_prototypes
from tests.core.methods.oracle import Oracle

SPECIALISTS = {
    "mlp": (mlp, lambda seed: points(seed, 30)),
    "conv": (conv_net, lambda seed: points(seed, 30, (1, 4, 4), 3)),
}
ALL = {"prototypes": {"kind": "all"}}
LAYER = {"granularity": "layer"}
WEIGHT = {"granularity": "weight"}
ONCE = {"max_sweeps": {"layer": 1, "neuron": 1, "weight": 1}}
BY_SPREAD = {"refinement": "thresholds", "tau_min": 0.01, "tau_max": 0.1}

CASES: dict[str, dict[str, Any]] = {
    "layer": LAYER,
    "neuron passes": {},
    "weight passes": {**WEIGHT, **ONCE},
    "neuron thresholds": BY_SPREAD,
    "weight thresholds": {**WEIGHT, **BY_SPREAD},
    "absolute thresholds": {**WEIGHT, **BY_SPREAD, "tau_scale": "absolute"},
    "thresholds found": {**WEIGHT, "refinement": "thresholds", "tau": "auto"},
    "thresholds found for layers": {**LAYER, "refinement": "thresholds", "tau": "auto"},
    "thresholds without neurons": {**LAYER, "refinement": "thresholds", "tau_min": 0.05, "tau_max": 0.2},
    "thresholds that refine all": {**WEIGHT, **ONCE, "refinement": "thresholds", "tau_min": 50.0},
    "rollback of the fine levels": {"rollback": "fine"},
    "paper": {**WEIGHT, "preset": "paper"},
    "full steps": {"step": "full"},
    "many halvings": {**LAYER, "max_backtracks": 5},
    "no halving": {"max_backtracks": 0},
    "flat steepness": {**WEIGHT, **ONCE, "steepness": 5.5, "steepness_scale": "flat"},
    "steep": {"steepness": {"layer": 60.0, "neuron": 8.0}},
    "equal shares": {"steepness": 0.0},
    "few sweeps": ONCE,
    "to the last gain": {"min_gain": 0.0, "max_sweeps": {"layer": 9, "neuron": 0}},
    "a large tolerance": {"tolerance": 0.02},
    "competence": {"competence": 1.0},
    "half of competence": {**WEIGHT, **ONCE, "competence": 0.5},
    "what stands joins": {**WEIGHT, **ONCE, "extra_candidates": ["current"]},
    "the average joins": {"extra_candidates": ["average"]},
    "both join": {**WEIGHT, **BY_SPREAD, "extra_candidates": ["average", "current"]},
    "unit guard": {"unit_guard": True},
    "unit guard of weights": {**WEIGHT, **BY_SPREAD, "unit_guard": True, "rollback": "fine"},
    "few decisions": {"max_decisions": 2},
    "some decisions": {**WEIGHT, "max_decisions": 61},
    "decisions among weights": {**WEIGHT, "refinement": "thresholds", "tau_min": 50.0, "max_decisions": 40},
}
ON_MEANS: dict[str, dict[str, Any]] = {
    "geometric": {**LAYER, "prototypes": {"kind": "geometric", "per_class": 1}},
    "arithmetic": {"prototypes": {"kind": "arithmetic", "per_class": 1, "weighted": True}},
    "paper": {"preset": "paper", **WEIGHT},
}


def engine(
    modules: Sequence[nn.Module], data: Pair, params: dict[str, Any], holdout: Pair | None = None
) -> tuple[dict[str, Tensor], list[Decision]]:
    sets = {"evaluation": data} if holdout is None else {"evaluation": data, "holdout": holdout}
    result = fuse_modules(modules, stages=["linear", {"method": "cogram", **params}], data=sets, guard="off", seed=3)
    return result.module.state_dict(), [found for found in result.trace.decisions() if found.stage == 1]


def oracle(
    modules: Sequence[nn.Module],
    data: Pair,
    params: dict[str, Any],
    holdout: Pair | None = None,
    order: Sequence[str] = (),
) -> Oracle:
    """From the plain mean of the sources, on prototypes worked out without the engine."""
    given = params.get("prototypes", {"kind": "geometric", "per_class": 1} if "preset" in params else {"kind": "all"})
    inputs, targets, weights = naive_prototypes(data, given)
    own = {key: value for key, value in params.items() if key != "prototypes"}
    with repeatable(1, torch.device("cpu")):
        return Oracle(average(modules), modules, (inputs, targets), own, weights, holdout, order).run()


def average(modules: Sequence[nn.Module]) -> nn.Module:
    made = copy.deepcopy(modules[0]).eval()
    states = [module.state_dict() for module in modules]
    made.load_state_dict(
        {
            name: (torch.stack([s[name].double() for s in states]).sum(0) / len(states)).float()
            if tensor.is_floating_point()
            else tensor
            for name, tensor in states[0].items()
        }
    )
    return made


def assert_agree(found: list[Decision], state: dict[str, Tensor], expected: Oracle) -> None:
    def name(at: Any) -> tuple[Any, ...]:
        return (at.layer, at.row, at.column, at.action, at.sweep)

    assert [name(decision) for decision in found] == [name(visit) for visit in expected.visits]
    for decision, visit in zip(found, expected.visits, strict=True):
        assert list(decision.loss_sources or ()) == pytest.approx(visit.losses, rel=1e-6)
        assert list(decision.shares or ()) == pytest.approx(visit.shares, abs=1e-6)
        assert decision.step == visit.step
        assert decision.loss_before == pytest.approx(visit.loss_before, rel=1e-6)
        assert decision.loss_after == (None if visit.loss_after is None else pytest.approx(visit.loss_after, rel=1e-6))
    for key, value in expected.state.items():
        assert torch.equal(state[key], torch.from_numpy(value)), key


def compare(kind: str, seed: int, count: int, params: dict[str, Any]) -> list[Decision]:
    build, make = SPECIALISTS[kind]
    modules, data, holdout = specialists(seed, count, build), make(seed + 50), make(seed + 51)
    state, found = engine(modules, data, params, holdout)
    assert_agree(found, state, oracle(modules, data, params, holdout))
    return found


def compare_family(family: Family, seed: int, count: int, params: dict[str, Any]) -> list[Decision]:
    modules, data, holdout = family.modules(seed, count), family.data(seed + 50), family.data(seed + 51)
    state, found = engine(modules, data, {**ALL, **params}, holdout)
    assert_agree(found, state, oracle(modules, data, {**ALL, **params}, holdout, family.order))
    return found


@pytest.mark.parametrize("case", CASES)
@settings(deadline=None, max_examples=2)
@given(seed=st.integers(0, 2**30), count=st.integers(2, 3), kind=st.sampled_from(sorted(SPECIALISTS)))
def test_the_engine_takes_the_oracle_s_decisions(case: str, seed: int, count: int, kind: str) -> None:
    compare(kind, seed, count, {**ALL, "max_decisions": 200, **CASES[case]})


@pytest.mark.parametrize("case", ON_MEANS)
@settings(deadline=None, max_examples=2)
@given(seed=st.integers(0, 2**30), kind=st.sampled_from(sorted(SPECIALISTS)))
def test_it_does_on_the_means_of_classes(case: str, seed: int, kind: str) -> None:
    compare(kind, seed, 2, ON_MEANS[case])


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=2)
@given(seed=st.integers(0, 2**30), case=st.sampled_from(sorted(CASES)))
def test_it_does_for_networks_of_every_kind(family: str, seed: int, case: str) -> None:
    compare_family(FAMILIES[family], seed, 2, {"max_decisions": 150, **CASES[case]})


@pytest.mark.parametrize("family", FAMILIES)
def test_it_does_at_every_level_of_every_kind(family: str) -> None:
    for params in (LAYER, {**ONCE, "max_decisions": 80}, {**WEIGHT, "max_sweeps": {"layer": 0, "neuron": 0}}):
        found = compare_family(
            FAMILIES[family], 1, 3, {**params, **({"max_decisions": 70} if WEIGHT.items() <= params.items() else {})}
        )
        assert any(decision.action == "merged" for decision in found)


def test_it_says_where_it_had_to_fall_back_and_only_there() -> None:
    def notes(family: str) -> dict[str, set[str]]:
        found = compare_family(FAMILIES[family], 2, 2, {**ONCE, "max_decisions": 60})
        said = {decision.layer: set[str]() for decision in found}
        for decision in found:
            said[decision.layer].add(decision.reason.partition("(")[2].partition(":")[0])
        return said

    assert notes("relu") == {"0": {""}, "2": {""}, "4": {""}}
    assert notes("residual") == {"first": {""}, "norm": {""}, "inner": {""}, "head": {""}}
    assert notes("twice") == {"first": {""}, "again": {"evaluated in full"}, "last": {""}}
    assert notes("outside") == {"first": {""}, "last": {"evaluated in full"}}
    # The network's own lines between calls run with every candidate of a whole layer, but not with many neurons at once.
    assert notes("between") == {"first": {""}, "last": {"", "evaluated one by one"}}


def test_the_comparison_meets_every_kind_of_decision() -> None:
    seen = [
        decision
        for case in ("neuron passes", "weight thresholds", "many halvings", "few decisions")
        for decision in compare("mlp", 1, 2, {**ALL, **CASES[case]})
    ]
    assert {decision.action for decision in seen} == {"merged", "rolled_back", "refined", "skipped"}
    assert {decision.kind for decision in seen} == {"layer", "neuron", "weight"}
    assert {decision.step for decision in seen if decision.action == "merged"} >= {1.0, 0.5}
    assert any(decision.reason == "stopped: max_decisions 2 are taken" for decision in seen)


def test_decisions_are_taken_on_the_prototypes_of_the_stage() -> None:
    modules, data = specialists(4), points(9, 80)
    params = {"prototypes": {"kind": "geometric", "per_class": 5, "weighted": True}}
    state, found = engine(modules, data, params)
    made = make_prototypes(Dataset(*data), PrototypeParams.model_validate(params["prototypes"]), seed=3, stage=1)
    assert made.weights is not None
    expected = Oracle(average(modules), modules, (made.inputs, made.targets), {}, made.weights.tolist())
    assert_agree(found, state, expected.run())
