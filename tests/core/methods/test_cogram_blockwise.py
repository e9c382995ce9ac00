"""Blocks of units together: approximate in what is decided on, not in what it promises."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cogram_core import fuse_modules
from cogram_core.trace import Decision
from tests.core.factories import Pair, points, random, specialists
from tests.core.methods.families import FAMILIES
from tests.core.methods.test_cogram_oracle import engine

BLOCKWISE: dict[str, Any] = {"mode": "blockwise", "prototypes": {"kind": "all"}}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"granularity": "weight", "max_sweeps": {"neuron": 1}},
    {"granularity": "weight", "refinement": "thresholds", "tau": "auto"},
    {"unit_guard": True, "extra_candidates": ["current"]},
]


def loss_of(module: nn.Module, data: Pair) -> float:
    module = module.double()
    with torch.no_grad():
        return float(nn.functional.cross_entropy(module(data[0].double()), data[1]))


@pytest.mark.parametrize("variant", range(len(VARIANTS)))
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**30), family=st.sampled_from(["relu", "convolution", "residual", "between"]))
def test_the_loss_never_rises_and_ends_where_the_network_really_is(variant: int, seed: int, family: str) -> None:
    modules, data = FAMILIES[family].modules(seed), FAMILIES[family].data(seed)
    stages = ["linear", {"method": "cogram", **BLOCKWISE, **VARIANTS[variant]}]
    sets = {"evaluation": data, "holdout": FAMILIES[family].data(seed + 1)}
    module, trace = fuse_modules(modules, stages=stages, data=sets, guard="off")
    found = [decision for decision in trace.decisions() if decision.stage == 1]
    before = [decision.loss_before for decision in found if decision.loss_before is not None]
    assert len(before) == len(found)
    assert all(later <= earlier for earlier, later in pairwise(before))
    moved = [decision.loss_after for decision in found if decision.action == "merged"]
    assert loss_of(module, data) == pytest.approx(moved[-1] if moved else before[0], rel=1e-6)


def separable(seed: int) -> tuple[list[nn.Module], Pair]:
    """Values that one layer gives: each neuron has a loss of its own, so that no move speaks to another neuron's."""
    generator = random(seed)
    modules: list[nn.Module] = [nn.Sequential(nn.Linear(3, 40)) for _ in range(2)]
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return modules, (torch.randn(9, 3, generator=generator), torch.randn(9, 40, generator=generator))


def test_where_units_do_not_speak_to_each_other_it_decides_as_one_by_one() -> None:
    # Only the first sweep: whether one is the last depends on the loss, and so may on a last digit.
    params = {"max_sweeps": {"layer": 0, "neuron": 1}, "prototypes": {"kind": "all"}}

    def told(decision: Decision) -> tuple[Any, ...]:
        return decision.row, decision.action, decision.step

    for seed in range(3):
        modules, data = separable(seed)
        exact, one_by_one = engine(modules, data, params)
        joint, together = engine(modules, data, {**params, "mode": "blockwise"})
        assert [told(decision) for decision in together] == [told(decision) for decision in one_by_one]
        assert {decision.action for decision in together} == {"merged", "rolled_back"}
        assert any("together with" in decision.reason for decision in together)
        assert all(torch.allclose(exact[name], joint[name], atol=1e-4) for name in exact)


@pytest.mark.parametrize("mode", ["exact", "blockwise"])
def test_a_stage_without_time_left_ends_with_what_it_has_and_says_so(mode: str) -> None:
    data = FAMILIES["relu"].data(1)
    modules = FAMILIES["relu"].modules(1)
    for budget in (1e-9, 0.02):
        params = {"granularity": "weight", "mode": mode, "time_budget": budget, "min_gain": 0.0}
        state, found = engine(modules, data, {**params, "max_sweeps": {"weight": 1000}})
        assert found[-1].action == "skipped"
        assert found[-1].reason == f"stopped: the time_budget of {budget:g} s is used up"
        assert sum(decision.reason.startswith("stopped") for decision in found) == 1
        module = FAMILIES["relu"].build()
        module.load_state_dict(state)
        last = [decision.loss_after for decision in found if decision.action == "merged"]
        assert loss_of(module, data) == pytest.approx(last[-1] if last else found[0].loss_before, rel=1e-5)


def test_limits_stop_every_kind_of_visit_at_once() -> None:
    modules, data = specialists(2), points(3, 20)
    for count in (1, 2, 3, 9, 30):
        for more in ({}, {"mode": "blockwise"}, {"granularity": "weight", "refinement": "thresholds", "tau_min": 9.0}):
            params = {"max_decisions": count, **more}
            _, found = engine(modules, data, params)
            assert len(found) == count + 1
            assert found[-1].reason == f"stopped: max_decisions {count} are taken"
