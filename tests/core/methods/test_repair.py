from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cogram_core import fuse, fuse_modules
from cogram_core.modules import FusedModule
from cogram_core.trace import Decision
from tests.core.factories import checkpoint_bytes, conv_net, initialise, mlp, points, recipe_document, specialists
from tests.core.methods.families import Attention, Twice
from tests.core.promises.replaying import Run

Array = NDArray[np.float64]
State = dict[str, Array]
STAGES = ["linear", "repair"]


def fused(modules: list[nn.Module], data: Any, own: Any = (), stages: Any = STAGES) -> FusedModule:
    return fuse_modules(modules, stages=stages, data=data, source_data=own, guard="off")


def arrays(module: nn.Module) -> State:
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def rows_of(result: FusedModule) -> dict[str, Decision]:
    return {decision.layer: decision for decision in result.trace.decisions() if decision.method == "repair"}


def before_layer(state: State, layer: int, inputs: Array) -> Array:
    """What a ReLU network's layer gives, by plain matrix products through all layers before it."""
    for place in range(0, layer + 1, 2):
        inputs = inputs @ state[f"{place}.weight"].T + state[f"{place}.bias"]
        if place < layer:
            inputs = np.maximum(inputs, 0)
    return inputs


def naive(states: list[State], sets: list[Array]) -> State:
    """A full pass of every network for every layer; sources of equal weight, each with its own data."""
    state = {name: np.mean([source[name] for source in states], axis=0) for name in states[0]}
    for layer in (0, 2, 4):
        own = [before_layer(source, layer, inputs) for source, inputs in zip(states, sets, strict=True)]
        now = [before_layer(state, layer, inputs) for inputs in sets]
        wanted = np.mean([each.mean(0) for each in own], 0), np.mean([each.std(0) for each in own], 0)
        found = np.mean([each.mean(0) for each in now], 0), np.mean([each.std(0) for each in now], 0)
        scale = wanted[1] / found[1]
        state[f"{layer}.weight"] = state[f"{layer}.weight"] * scale[:, None]
        state[f"{layer}.bias"] = (state[f"{layer}.bias"] - found[0]) * scale + wanted[0]
    return state


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 4), apart=st.booleans())
def test_layers_are_repaired_one_after_the_other(seed: int, count: int, apart: bool) -> None:
    modules: list[nn.Module] = [mlp(seed + place) for place in range(count)]
    common = points(seed, 70)
    own = [points(seed + 10 + place, 20 + place) for place in range(count)] if apart else []
    result = fused(modules, {"evaluation": common}, own)
    sets = [pair[0].double().numpy() for pair in own or [common] * count]
    expected = naive([arrays(module) for module in modules], sets)
    for name, value in arrays(result.module).items():
        # Not below what float32 has left after a mean over three or four sources with rounded shares.
        assert np.allclose(value, expected[name], rtol=1e-3, atol=1e-3 * np.abs(expected[name]).max()), name
    assert all(row.action == "solved" and row.payload is not None for row in rows_of(result).values())


class Deep(nn.Module):
    """Convolutions of two sorts, a group normalisation, and layers that share their input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 2, groups=2, bias=False)
        self.norm, self.one, self.other = nn.GroupNorm(2, 6), nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.gelu(self.norm(self.grouped(torch.tanh(self.first(inputs)))))
        hidden = hidden.mean((2, 3))
        return torch.as_tensor(self.one(hidden) * torch.sigmoid(self.other(hidden)))


def outputs(module: nn.Module, inputs: Tensor, layers: list[str]) -> dict[str, Tensor]:
    """What the layers give, one row of numbers a unit."""
    found: dict[str, Tensor] = {}
    for name in layers:
        module.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.update({name: output.detach().double().transpose(0, 1).flatten(1)})
        )
    module(inputs)
    return found


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**31))
def test_afterwards_every_unit_has_the_sources_mean_and_deviation(seed: int) -> None:
    modules: list[nn.Module] = [initialise(Deep(), seed + place, 0.7) for place in range(3)]
    inputs, layers = torch.randn(80, 1, 6, 6, generator=torch.Generator().manual_seed(seed)), [
        "first", "grouped", "one", "other",
    ]  # fmt: skip
    result = fused(modules, {"evaluation": (inputs, torch.zeros(80, dtype=torch.int64))})
    own = [outputs(copy.deepcopy(module), inputs, layers) for module in modules]
    found = outputs(result.module, inputs, layers)
    for name in layers:
        wanted = torch.stack([each[name].std(1, correction=0) for each in own]).mean(0)
        assert torch.allclose(found[name].std(1, correction=0), wanted, rtol=1e-3), name
        if name != "grouped":  # it has no bias, so its means stay scaled ones
            means = torch.stack([each[name].mean(1) for each in own]).mean(0)
            assert torch.allclose(found[name].mean(1), means, atol=1e-3 * float(wanted.max())), name
    assert "without bias the means stay" in rows_of(result)["grouped.weight"].reason


def test_in_front_of_batch_normalisation_its_statistics_are_taken_anew_instead() -> None:
    modules: list[nn.Module] = [conv_net(1), conv_net(2)]
    inputs, targets = points(4, 40, (1, 4, 4), 3)
    result = fused(modules, {"evaluation": (inputs, targets)})
    mean = fused(modules, {"evaluation": (inputs, targets)}, stages=["linear"]).module
    assert torch.equal(result.module.state_dict()["0.weight"], mean.state_dict()["0.weight"])
    given = mean.get_submodule("0")(inputs).detach().double().transpose(0, 1).flatten(1)
    state = result.module.state_dict()
    assert torch.allclose(state["1.running_mean"].double(), given.mean(1), rtol=1e-5)
    assert torch.allclose(state["1.running_var"].double(), given.var(1), rtol=1e-5)
    rows = rows_of(result)
    assert rows["0"].action == "skipped"
    assert "in front of 1" in rows["0"].reason
    assert {name for name, row in rows.items() if row.action == "solved"} == {
        "1.running_mean", "1.running_var", "4.weight", "4.bias",
    }  # fmt: skip


def test_layers_that_are_called_twice_or_used_by_others_stay() -> None:
    modules: list[nn.Module] = [initialise(Twice(), seed) for seed in (1, 2)]
    data = {"evaluation": (torch.randn(20, 4), torch.randint(0, 3, (20,)))}
    result, mean = fused(modules, data), fused(modules, data, stages=["linear"])
    state, usual = result.module.state_dict(), mean.module.state_dict()
    assert torch.equal(state["again.weight"], usual["again.weight"])
    assert not torch.equal(state["last.weight"], usual["last.weight"])
    assert "several times" in rows_of(result)["again"].reason


def test_constant_units_are_shifted_and_a_single_example_gives_numbers() -> None:
    modules: list[nn.Module] = [mlp(1), mlp(2)]
    with torch.no_grad():
        for module in modules:
            module[0].weight[3] = 0.0  # dead in both
        modules[0][0].weight[4], modules[1][0].weight[4] = (
            torch.ones(6),
            -torch.ones(6),
        )  # alive in both, dead in the mean
    inputs, targets = points(4, 30)
    result = fused(modules, {"evaluation": (inputs, targets)})
    state = result.module.state_dict()
    bias = (modules[0].state_dict()["0.bias"] + modules[1].state_dict()["0.bias"]) / 2
    assert torch.equal(state["0.weight"][3:5], torch.zeros(2, 6))
    assert torch.allclose(state["0.bias"][3], bias[3])
    wanted = torch.stack([module[0](inputs)[:, 4].mean() for module in modules]).mean()
    assert torch.allclose(state["0.bias"][4], wanted, rtol=1e-5)
    assert "2 of 8 units are constant and not scaled" in rows_of(result)["0.weight"].reason
    single = fused(modules, {"evaluation": (inputs[:1], targets[:1])})
    assert all(torch.isfinite(tensor).all() for tensor in single.module.state_dict().values())
    scores = torch.stack([module(inputs[:1]) for module in modules]).mean(0)
    assert torch.allclose(single.module(inputs[:1]), scores, atol=1e-5)


class Reader(nn.Module):
    """Token ids, negative where there is none, a block with attention, and a mean over what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.up, self.head = nn.Embedding(7, 4), nn.Linear(4, 6), nn.Linear(6, 3)
        self.attention = Attention(4)

    def forward(self, ids: Tensor) -> Tensor:
        absent = (ids < 0)[..., None]
        hidden = functional.relu(self.up(self.attention(self.ids(ids.clamp(min=0)))))
        kept = torch.where(absent, 0.0, hidden).sum(1) / (~absent).sum(1)
        return torch.as_tensor(self.head(kept))


def test_where_every_source_has_data_of_its_own_there_need_be_no_other() -> None:
    modules: list[nn.Module] = [mlp(1), mlp(2)]
    own = [points(3, 30), points(4, 30)]
    alone, beside = fused(modules, {}, own).module, fused(modules, {"evaluation": points(5, 30)}, own).module
    assert all(torch.equal(tensor, beside.state_dict()[name]) for name, tensor in alone.state_dict().items())


def test_padding_changes_nothing() -> None:
    modules: list[nn.Module] = [initialise(Reader(), seed, 0.8) for seed in (1, 2)]
    ids = torch.randint(0, 7, (30, 5), generator=torch.Generator().manual_seed(1))
    targets = torch.zeros(30, dtype=torch.int64)
    padded = functional.pad(ids, (0, 4), value=-1)
    states = [fused(modules, {"evaluation": (given, targets)}).module.state_dict() for given in (ids, padded)]
    for name, tensor in states[0].items():
        assert torch.allclose(tensor, states[1][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("build", [mlp, conv_net])
def test_it_replays_and_a_killed_run_is_gone_on_from(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", specialists(3, 3, build), STAGES, guard="report")
    run.assert_replays(monkeypatch, tmp_path / "replayed")
    shape, classes = ((1, 4, 4), 3) if build is conv_net else ((6,), 4)
    cogram = {"method": "cogram", "max_sweeps": {"layer": 1}}
    data = {"evaluation": points(7, 30, shape, classes), "guard": "off"}
    document = recipe_document(tmp_path / "in", specialists(3, 2, build), [*STAGES, cogram], **data)
    whole = fuse(document, tmp_path / "whole", journal=tmp_path / "journal")
    again = fuse(document, tmp_path / "again", earlier=[tmp_path / "journal"])
    assert again.report["resumed_after"] > 0
    assert checkpoint_bytes(again.output) == checkpoint_bytes(whole.output)
