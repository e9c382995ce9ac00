from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cogram_core import fuse_modules
from cogram_core.errors import InvalidInput, RecipeError
from cogram_core.modules import FusedModule
from tests.core.factories import conv_net, mlp, points, specialists
from tests.core.methods.families import Residual
from tests.core.promises.replaying import NEURON, Run

DATA = {"evaluation": points(0, 8)}


def fused(modules: list[nn.Module], **params: Any) -> FusedModule:
    return fuse_modules(modules, stages=[{"method": "preserve_first", **params}], data=DATA, guard="off")


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(2, 4),
    layers=st.sampled_from([1, 2, 3, 0.01, 0.4, 0.5, 0.99]),
    owner=st.integers(0, 3),
)
def test_early_layers_are_one_source_s_and_later_ones_the_mean(
    seed: int, count: int, layers: float, owner: int
) -> None:
    modules: list[nn.Module] = [mlp(seed + place) for place in range(count)]
    owner %= count
    kept = {0.01: 1, 0.4: 1, 0.5: 2, 0.99: 3}.get(layers, layers)
    result = fused(modules, layers=layers, source=f"module-{owner}")
    states = [module.state_dict() for module in modules]
    for name, tensor in result.module.state_dict().items():
        if int(name[0]) // 2 < kept:
            assert torch.equal(tensor, states[owner][name]), name
        else:
            mean = sum(state[name].double() for state in states) / count
            assert isinstance(mean, torch.Tensor)
            # The shares are rounded to 2⁻¹⁶.
            assert torch.allclose(tensor.double(), mean, rtol=0, atol=5 * 2**-16)
    rows = {decision.layer: decision for decision in result.trace.decisions()}
    assert set(rows) == set(states[0])
    assert all(decision.action == "merged" and decision.step is None for decision in rows.values())
    assert rows["0.weight"].shares == tuple(float(place == owner) for place in range(count))


def test_layers_count_in_the_order_in_which_they_run() -> None:
    modules: list[nn.Module] = [Residual(), Residual()]
    names = ["first", "norm", "inner", "head"]
    inputs = torch.randn(8, 4)
    data = {"evaluation": (inputs, torch.randint(0, 3, (8,)))}
    for kept in range(1, 5):
        stage = {"method": "preserve_first", "layers": kept, "source": "module-1"}
        state = fuse_modules(modules, stages=[stage], data=data, guard="off").module.state_dict()
        own = modules[1].state_dict()
        same = [name for name in names if torch.equal(state[f"{name}.weight"], own[f"{name}.weight"])]
        assert [name for name in same if name != "norm"] == [name for name in names[:kept] if name != "norm"]


def test_it_begins_with_the_first_source_and_half_of_the_layers() -> None:
    modules: list[nn.Module] = [mlp(1, (6, 5, 5, 5, 4)), mlp(2, (6, 5, 5, 5, 4))]
    state, first = fused(modules).module.state_dict(), modules[0].state_dict()
    assert [torch.equal(state[name], first[name]) for name in ("0.bias", "2.bias", "4.bias", "6.bias")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_statistics_of_normalisation_belong_to_their_layer() -> None:
    modules: list[nn.Module] = [conv_net(1), conv_net(2)]
    data = {"evaluation": points(0, 8, (1, 4, 4), 3)}
    stages = [{"method": "preserve_first", "layers": 2, "source": "module-1"}]
    state = fuse_modules(modules, stages=stages, data=data, guard="off").module.state_dict()
    own = modules[1].state_dict()
    assert all(torch.equal(state[name], own[name]) for name in own if not name.startswith("4.") and own[name].ndim)


def test_more_layers_than_there_are_and_a_source_that_is_not_there_are_refused() -> None:
    with pytest.raises(RecipeError) as caught:
        fused([mlp(1), mlp(2)], layers=4)
    assert [problem.code for problem in caught.value.problems] == ["recipe.too_many_layers"]
    with pytest.raises(InvalidInput) as unknown:
        fused([mlp(1), mlp(2)], source="module-7")
    assert [(p.location, p.code) for p in unknown.value.problems] == [("stages[0].source", "recipe.unknown_source")]


@pytest.mark.parametrize("layers", [0, 1.5, 0.0, -1, True, "half"])
def test_numbers_of_layers_that_mean_nothing_are_refused(layers: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        fused([mlp(1), mlp(2)], layers=layers)
    assert [problem.location for problem in caught.value.problems] == ["stages[0].layers"]


def test_it_replays_from_its_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, specialists(3, 3), [{"method": "preserve_first", "source": "module-2"}, NEURON], guard="report")
    run.assert_replays(monkeypatch, tmp_path / "again")
