"""The engine takes the oracle's decisions, in the oracle's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cogram_core import fuse_modules
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.prototypes import PrototypeParams, make_prototypes
from cogram_core.trace import Decision
from tests.core.factories import conv_net, mlp, points, specialists
from tests.core.methods.naive_prototypes import naive_prototypes
from tests.core.methods.oracle import Oracle

Build = Callable[[int], nn.Sequential]
ALL = {"prototypes": {"kind": "all"}}

CASES: dict[str, dict[str, Any]] = {
    "layer": {**ALL, "granularity": "layer"},
    "neuron passes": {**ALL, "granularity": "neuron"},
    "neuron thresholds": {**ALL, "granularity": "neuron", "refinement": "thresholds", "tau_min": 0.01, "tau_max": 0.1},
    "thresholds without neurons": {
        **ALL,
        "granularity": "layer",
        "refinement": "thresholds",
        "tau_min": 0.05,
        "tau_max": 0.2,
    },
    "thresholds that refine all": {**ALL, "granularity": "neuron", "refinement": "thresholds", "tau_min": 50.0},
    "rollback of the fine levels": {**ALL, "granularity": "neuron", "rollback": "fine"},
    "full steps": {**ALL, "granularity": "neuron", "step": "full"},
    "many halvings": {**ALL, "granularity": "layer", "max_backtracks": 5},
    "no halving": {**ALL, "granularity": "layer", "max_backtracks": 0},
    "flat steepness": {**ALL, "granularity": "neuron", "steepness": 5.5, "steepness_scale": "flat"},
    "steep": {**ALL, "granularity": "neuron", "steepness": {"layer": 60.0, "neuron": 8.0}},
    "equal shares": {**ALL, "granularity": "neuron", "steepness": 0.0},
    "few sweeps": {**ALL, "granularity": "neuron", "max_sweeps": {"layer": 1, "neuron": 1}},
    "to the last gain": {**ALL, "granularity": "layer", "min_gain": 0.0, "max_sweeps": {"layer": 9, "neuron": 0}},
    "a large tolerance": {**ALL, "granularity": "layer", "tolerance": 0.02},
    "geometric": {"prototypes": {"kind": "geometric", "per_class": 1}, "granularity": "layer"},
    "arithmetic": {"prototypes": {"kind": "arithmetic", "per_class": 1, "weighted": True}, "granularity": "neuron"},
}


def engine(
    modules: Sequence[nn.Module], data: tuple[Tensor, Tensor], params: dict[str, Any], start: str = "linear"
) -> tuple[dict[str, Tensor], list[Decision]]:
    stages = [start, {"method": "cogram", **params}]
    result = fuse_modules(modules, stages=stages, data={"evaluation": data}, guard="off", seed=3)
    return result.module.state_dict(), [found for found in result.trace.decisions() if found.stage == 1]


def oracle(modules: Sequence[nn.Module], data: tuple[Tensor, Tensor], params: dict[str, Any]) -> Oracle:
    """From the plain mean of the sources, on prototypes worked out without the engine."""
    assert isinstance(modules[0], nn.Sequential)
    start = fuse_modules(modules, stages=["linear"]).module
    assert isinstance(start, nn.Sequential)
    inputs, targets, weights = naive_prototypes(data, params.get("prototypes", {}))
    found = Oracle(start, modules, (inputs, targets), {k: v for k, v in params.items() if k != "prototypes"}, weights)
    found.run()
    return found


def assert_agree(found: list[Decision], state: dict[str, Tensor], expected: Oracle) -> None:
    def name(at: Any) -> tuple[str, int | None, str, int]:
        return (at.layer, at.row, at.action, at.sweep)

    assert [name(decision) for decision in found] == [name(visit) for visit in expected.visits]
    for decision, visit in zip(found, expected.visits, strict=True):
        assert list(decision.loss_sources or ()) == pytest.approx(visit.losses, rel=1e-6)
        assert list(decision.shares or ()) == pytest.approx(visit.shares, abs=1e-6)
        assert decision.step == visit.step
        assert decision.loss_before == pytest.approx(visit.loss_before, rel=1e-6)
        assert decision.loss_after == (None if visit.loss_after is None else pytest.approx(visit.loss_after, rel=1e-6))
    for key, value in expected.state.items():
        assert torch.equal(state[key], torch.from_numpy(value)), key


def compare(build: Build, seed: int, count: int, params: dict[str, Any], examples: int = 40) -> list[Decision]:
    modules = specialists(seed, count, build)
    data = points(seed + 50, examples, (1, 4, 4), 3) if build is conv_net else points(seed + 50, examples)
    state, found = engine(modules, data, params)
    assert_agree(found, state, oracle(modules, data, params))
    return found


@pytest.mark.parametrize("case", CASES)
@settings(deadline=None, max_examples=2)
@given(seed=st.integers(0, 2**30), count=st.integers(2, 3), build=st.sampled_from([mlp, conv_net]))
def test_the_engine_takes_the_oracle_s_decisions(case: str, seed: int, count: int, build: Build) -> None:
    compare(build, seed, count, CASES[case])


@pytest.mark.parametrize("build", [mlp, conv_net])
def test_the_comparison_meets_every_kind_of_decision(build: Build) -> None:
    seen = [
        decision
        for case in ("neuron passes", "neuron thresholds", "many halvings")
        for seed in (1, 2)
        for decision in compare(build, seed, 2, CASES[case])
    ]
    assert {decision.action for decision in seen} >= {"merged", "rolled_back", "refined"}
    assert {decision.kind for decision in seen} == {"layer", "neuron"}
    assert len({decision.step for decision in seen if decision.action == "merged"}) > 1


def test_decisions_are_taken_on_the_prototypes_of_the_stage() -> None:
    modules, data = specialists(4), points(9, 80)
    params = {"prototypes": {"kind": "geometric", "per_class": 5, "weighted": True}}
    state, found = engine(modules, data, params)
    made = make_prototypes(Dataset(*data), PrototypeParams.model_validate(params["prototypes"]), seed=3, stage=1)
    assert made.weights is not None
    start = fuse_modules(modules, stages=["linear"]).module
    assert isinstance(start, nn.Sequential)
    expected = Oracle(start, modules, (made.inputs, made.targets), {}, made.weights.tolist())
    expected.run()
    assert_agree(found, state, expected)
