from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from cogram_core import Recipe, fuse_modules
from cogram_core.errors import RecipeError
from cogram_core.methods.cogram.params import Params
from cogram_core.trace import Decision
from tests.core.factories import conv_net, initialise, mlp, points, random, specialists, trained
from tests.core.recipe.documents import without_idle

seeds = st.integers(0, 2**30)
few = settings(deadline=None, max_examples=5)
builds = st.sampled_from([mlp, conv_net])
ACTIONS = ("merged", "refined", "rolled_back", "skipped")
variants = st.fixed_dictionaries(
    {},
    optional={
        "granularity": st.sampled_from(["layer", "neuron", "weight"]),
        "competence": st.floats(0, 2),
        "refinement": st.sampled_from(["passes", "thresholds"]),
        "steepness": st.floats(0, 50),
        "steepness_scale": st.sampled_from(["units", "flat"]),
        "tau_min": st.floats(0, 0.2),
        "tau_max": st.one_of(st.none(), st.floats(0.2, 1)),
        "step": st.sampled_from(["full", "backtrack"]),
        "max_backtracks": st.integers(0, 4),
        "prototypes": st.fixed_dictionaries(
            {"kind": st.sampled_from(["geometric", "arithmetic", "all"])},
            optional={"per_class": st.integers(1, 9), "weighted": st.booleans()},
        ),
    },
).map(without_idle)


joined = st.lists(st.sampled_from(["current", "average"]), unique=True)


def run(
    modules: Sequence[nn.Module],
    params: dict[str, Any],
    data: tuple[Tensor, Tensor] | None = None,
    first: str = "linear",
) -> tuple[dict[str, Tensor], list[Decision]]:
    convolution = isinstance(next(modules[0].children()), nn.Conv2d)
    data = data or (points(77, 40, (1, 4, 4), 3) if convolution else points(77, 40))
    stages = [first, {"method": "cogram", **params}]
    result = fuse_modules(modules, stages=stages, data={"evaluation": data}, guard="off")
    return result.module.state_dict(), [decision for decision in result.trace.decisions() if decision.stage == 1]


def average(modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    return fuse_modules(modules, stages=["linear"]).module.state_dict()


@few
@given(seeds, variants, joined, builds)
def test_with_rollback_everywhere_the_loss_never_rises(
    seed: int, params: dict[str, Any], extras: list[str], build: Any
) -> None:
    _, found = run(specialists(seed, build=build), {"extra_candidates": extras, **params})
    before = [decision.loss_before for decision in found if decision.loss_before is not None]
    assert before == sorted(before, reverse=True)
    for decision in found:
        assert decision.loss_before is not None
        if decision.action == "merged":
            assert decision.loss_after is not None
            assert decision.loss_after < decision.loss_before * (1 - 1e-6)
        if decision.action == "rolled_back":
            assert decision.loss_after is not None
            assert not decision.loss_after < decision.loss_before * (1 - 1e-6)


@few
@given(seeds, variants, builds, st.sampled_from(["linear", "fisher"]))
def test_identical_sources_change_nothing_and_are_never_merged(
    seed: int, params: dict[str, Any], build: Any, first: str
) -> None:
    module = build(seed)
    state, found = run([module, module, module], params, first=first)
    assert {decision.action for decision in found} <= {"skipped"}
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in state.items())


@few
@given(seeds, st.floats(0, 50), st.floats(0, 2), st.sampled_from([["current"], ["average"], ["average", "current"]]))
def test_swapping_sources_leaves_further_candidates_their_shares(
    seed: int, steepness: float, competence: float, extras: list[str]
) -> None:
    one, other = specialists(seed)
    params = {"extra_candidates": extras, "steepness": steepness, "competence": competence, "max_decisions": 1}
    (_, (decision, _)), (_, (mirror, _)) = run([one, other], params), run([other, one], params)
    assert decision.shares is not None
    assert mirror.shares is not None
    assert len(decision.shares) == 2 + len(extras)
    # Running sums are rounded to multiples of 2⁻¹⁶, so a share's last one depends on what stands before it.
    assert mirror.shares == pytest.approx([*decision.shares[1::-1], *decision.shares[2:]], abs=2.0**-15)


@few
@given(seeds, variants, builds)
def test_swapping_two_sources_swaps_their_shares_and_gives_the_same_network(
    seed: int, params: dict[str, Any], build: Any
) -> None:
    one, other = specialists(seed, build=build)
    state, found = run([one, other], params)
    swapped, mirrored = run([other, one], params)
    assert [decision.shares for decision in found] == [
        None if decision.shares is None else decision.shares[::-1] for decision in mirrored
    ]
    for name, tensor in state.items():
        assert tensor.numpy().tobytes() == swapped[name].numpy().tobytes(), name


@few
@given(seeds, variants, st.integers(2, 4))
def test_shares_lie_between_nothing_and_everything(seed: int, params: dict[str, Any], count: int) -> None:
    _, found = run(specialists(seed, count), params)
    for decision in found:
        if decision.shares is not None:
            assert all(0.0 <= share <= 1.0 for share in decision.shares)
            assert math.fsum(decision.shares) == 1.0


@few
@given(seeds, st.sampled_from(["layer", "neuron", "weight"]))
def test_a_steepness_of_zero_gives_equal_shares(seed: int, granularity: str) -> None:
    _, found = run(specialists(seed), {"steepness": 0.0, "granularity": granularity})
    assert {decision.shares for decision in found if decision.shares} == {(0.5, 0.5)}


@few
@given(seeds)
def test_a_steepness_without_end_takes_the_better_source(seed: int) -> None:
    _, found = run(specialists(seed), {"steepness": 1e12, "granularity": "neuron"})
    decided = [decision for decision in found if decision.shares and decision.spread]
    assert decided
    for decision in decided:
        assert decision.loss_sources is not None
        better = decision.loss_sources.index(min(decision.loss_sources))
        assert decision.shares == tuple(float(place == better) for place in range(2))


@few
@given(seeds, variants, builds)
def test_what_was_never_merged_keeps_its_bytes(seed: int, params: dict[str, Any], build: Any) -> None:
    modules = specialists(seed, build=build)
    state, found = run(modules, params)
    touched: dict[str, set[int | None]] = {}
    for decision in found:
        if decision.action == "merged":
            touched.setdefault(decision.layer, set()).add(decision.row)
    for name, start in average(modules).items():
        rows = touched.get(name.rpartition(".")[0], set())
        if None in rows:
            continue
        for row in set(range(len(start) if start.ndim else 0)) - rows:
            assert state[name][row].numpy().tobytes() == start[row].numpy().tobytes(), (name, row)


@few
@given(seeds, builds)
def test_a_network_of_which_everything_was_rolled_back_keeps_its_bytes(seed: int, build: Any) -> None:
    modules = specialists(seed, build=build)
    # No move gains ninety-nine hundredths of the loss.
    state, found = run(modules, {"tolerance": 0.99, "granularity": "neuron", "max_backtracks": 3})
    steps = {action: {decision.step for decision in found if decision.action == action} for action in ACTIONS}
    assert steps["rolled_back"] == {0.125}
    assert not steps["merged"]
    start = average(modules)
    assert all(tensor.numpy().tobytes() == start[name].numpy().tobytes() for name, tensor in state.items())


@few
@given(seeds)
def test_on_a_network_of_one_layer_the_layer_level_is_the_closed_formula(seed: int) -> None:
    data = points(seed, 40)
    start = initialise(nn.Sequential(nn.Linear(6, 4)), seed)
    one, other = (trained(start, points(seed + place, 40, skew=skew), 40) for place, skew in ((1, 0.9), (2, -0.9)))
    params = {"prototypes": {"kind": "all"}, "step": "full", "max_sweeps": {"layer": 1, "neuron": 0}}
    state, (decision,) = run([one, other], params, data)
    with torch.no_grad():
        l_a, l_b = (float(nn.functional.cross_entropy(module(data[0]).double(), data[1])) for module in (one, other))
    alpha = 1 / (1 + math.exp(-5.5 * (l_b - l_a)))
    assert decision.shares is not None
    assert decision.shares[0] == pytest.approx(alpha, abs=2.0**-17 + 1e-6)
    for name, tensor in state.items():
        a, b = one.state_dict()[name].double(), other.state_dict()[name].double()
        expected = alpha * a + (1 - alpha) * b if decision.action == "merged" else (a + b) / 2
        assert torch.allclose(tensor.double(), expected, atol=float((a - b).abs().max()) * 2.0**-16 + 1e-6)


def test_a_source_that_breaks_the_network_gets_no_share_and_its_start_is_repaired() -> None:
    one, other = specialists(1)
    broken = mlp(5)
    with torch.no_grad():
        broken.get_submodule("2").weight.fill_(3e38)  # finite, but what it computes is not, and so is the mean's
    _, found = run(
        [one, other, broken], {"granularity": "layer"}
    )  # finer levels compute in float64, where it is finite
    assert [(decision.layer, decision.action) for decision in found[:2]] == [("4", "skipped"), ("2", "merged")]
    assert found[0].loss_before == math.inf
    assert found[0].reason == "no source gives a finite loss"
    assert found[1].shares is not None
    assert found[1].shares[2] == 0.0
    assert found[1].loss_after is not None
    assert math.isfinite(found[1].loss_after)


def test_the_order_is_from_output_to_input_and_neurons_by_index() -> None:
    _, found = run(specialists(3), {"granularity": "neuron", "max_sweeps": {"layer": 1, "neuron": 1}})
    assert [(decision.layer, decision.row) for decision in found if decision.kind == "layer"] == [
        ("4", None),
        ("2", None),
        ("0", None),
    ]
    expected = [("4", row) for row in range(4)] + [("2", row) for row in range(5)] + [("0", row) for row in range(8)]
    assert [(decision.layer, decision.row) for decision in found if decision.kind == "neuron"] == expected
    assert [decision.seq for decision in found] == list(range(found[0].seq, found[0].seq + len(found)))


@few
@given(seeds)
def test_steepness_of_a_neuron_grows_with_its_siblings_unless_flat(seed: int) -> None:
    generator = random(seed)
    steepness = float(torch.rand((), generator=generator)) * 3
    per_layer = {"4": 4, "2": 5, "0": 8}
    for scale in ("units", "flat"):
        params = {
            "granularity": "neuron",
            "steepness": {"layer": 5.5, "neuron": steepness},
            "steepness_scale": scale,
            "max_sweeps": {"layer": 0, "neuron": 1},
        }
        for decision in run(specialists(seed), params)[1]:
            if decision.loss_sources is not None:
                slope = steepness * (per_layer[decision.layer] if scale == "units" else 1)
                a, b = decision.loss_sources
                assert decision.shares is not None
                assert decision.shares[0] == pytest.approx(1 / (1 + math.exp(-slope * (b - a))), abs=2.0**-17 + 1e-9)


@pytest.mark.parametrize("granularity", ["layer", "neuron"])
def test_weighing_the_sources_advantages_leaves_the_network_where_it_was(granularity: str) -> None:
    params = {"granularity": granularity, "max_decisions": 1}
    (plain, *_), (fair, *_) = (run(specialists(3), {**params, "competence": kappa})[1] for kappa in (0.0, 1.0))
    assert fair.loss_before == plain.loss_before


def test_thresholds_in_the_wrong_order_are_refused_by_the_model_and_by_the_recipe() -> None:
    with pytest.raises(ValidationError, match="tau_min"):
        Params(tau_min=0.5, tau_max=0.1)
    document = {
        "sources": [{"name": name, "checkpoint": name} for name in ("a", "b")],
        "data": {"evaluation": "e", "holdout": "h"},
        "stages": [{"method": "cogram", "tau_min": 0.5, "tau_max": 0.1}],
    }
    with pytest.raises(RecipeError) as caught:
        Recipe.from_document(document)
    assert {problem.code for problem in caught.value.problems} == {"recipe.wrong_order"}


@pytest.mark.parametrize("same", [0.0, 0.1])
def test_equal_thresholds_are_in_order(same: float) -> None:
    assert Params(tau_min=same, tau_max=same).tau_max == same
