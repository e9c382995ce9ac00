"""With compiled code and without it, the engine takes the same decisions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cogram_core import fuse_modules
from cogram_core.evaluation import compiled
from cogram_core.trace import Decision
from tests.core.factories import Pair, initialise, random
from tests.core.methods.families import moved

LOSSES = ("loss_before", "loss_sources", "spread", "loss_after")


@st.composite
def networks(draw: st.DrawFn) -> tuple[list[nn.Module], Pair]:
    """Sources, of up to two hidden layers with more rows than a block or fewer, and examples of a batch or of two."""
    seed, bias = draw(st.integers(0, 2**20)), draw(st.booleans())
    widths = draw(st.lists(st.sampled_from([1, 9, 70]), max_size=2))
    inputs, classes = draw(st.sampled_from([1, 6])), draw(st.sampled_from([1, 4, 17]))
    between = draw(st.sampled_from([nn.ReLU, nn.ReLU, nn.Identity]))
    layers: list[nn.Module] = []
    for into, out in zip([inputs, *widths], [*widths, classes], strict=True):
        layers += [nn.Linear(into, out, bias=bias), between()]
    start = initialise(nn.Sequential(*layers[:-1]), seed)
    by = draw(st.sampled_from([0.01, 0.5]))
    sources = [moved(start, seed + 1 + place, by) for place in range(draw(st.integers(2, 4)))]
    count, generator = draw(st.sampled_from([1, 40, 70, 1030])), random(seed)
    examples = torch.randn(count, inputs, generator=generator), torch.randint(classes, (count,), generator=generator)
    return sources, examples


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, Any]:
    possible: dict[str, list[Any]] = {
        "granularity": ["neuron", "weight"],
        "prototypes": [{"kind": "all"}, {"kind": "kmeans", "per_class": 3, "weighted": True}],
        "extra_candidates": [[], [], ["current"], ["average", "current"]],
        "competence": [0.0, 1.0],
        "tolerance": [1e-6, 0.0, 0.02],
        "rollback": ["all", "fine"],
        "max_backtracks": [2, 0, 6],
        "steepness": [1.0, 60.0],
        "steepness_scale": ["units", "flat"],
        "min_gain": [0.0],
        "max_sweeps": [{"layer": 1, "neuron": 1}, {"layer": 0, "neuron": 2}],
        "max_decisions": [61, 150],
        "unit_guard": [False, False, True],
    }
    found = {name: draw(st.sampled_from(values)) for name, values in possible.items()}
    if draw(st.integers(0, 2)) == 0:  # no sweep of a single level, then
        found |= {"refinement": "thresholds", "tau_min": 0.01, "max_sweeps": {"layer": 1}}
    return found


def decided(
    sources: list[nn.Module], examples: Pair, params: dict[str, Any], dtype: str
) -> tuple[dict[str, Tensor], list[Decision]]:
    data = {"evaluation": examples, "holdout": (examples[0] + 0.1, examples[1])}
    stages: list[Any] = ["linear", {"method": "cogram", **params}]
    found = fuse_modules(sources, stages=stages, data=data, guard="off", compute_dtype=dtype, threads=1)
    return found.module.state_dict(), list(found.trace.decisions())


def losses(decision: Decision) -> list[float]:
    known = (decision.loss_before, *(decision.loss_sources or ()), decision.loss_after)
    return [loss for loss in known if loss is not None]


@settings(deadline=None, max_examples=30)
@given(networks(), parameters(), st.sampled_from(["float32", "float64"]))
def test_decisions_do_not_depend_on_whether_there_is_compiled_code(
    network: tuple[list[nn.Module], Pair], params: dict[str, Any], dtype: str
) -> None:
    assert compiled.library() is not None
    state, found = decided(*network, params, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "library", lambda: None)
        expected_state, expected = decided(*network, params, dtype)
    uncompared: dict[str, Any] = {"elapsed": 0.0} | dict.fromkeys(LOSSES)
    assert [replace(one, **uncompared) for one in found] == [replace(one, **uncompared) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert losses(one) == pytest.approx(losses(other), rel=1e-9, abs=1e-12)
    assert all(torch.equal(tensor, expected_state[name]) for name, tensor in state.items())
