from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from cogram_core import fuse, fuse_modules, replay
from cogram_core.errors import InvalidInput, ReplayError
from cogram_core.methods.adamerging import entropies
from cogram_core.modules import FusedModule
from cogram_core.seeding import generator
from tests.core.factories import checkpoint_bytes, conv_net, mlp, points, recipe_document, save_checkpoint, specialists
from tests.core.methods.families import moved
from tests.core.promises.test_replay_refusals import column

QUICK = {"method": "adamerging", "steps": 3}


def fused(modules: list[nn.Module], base: nn.Module, data: Any, own: Any = (), **params: Any) -> FusedModule:
    stages = [{**QUICK, **params}]
    return fuse_modules(modules, stages=stages, data=data, base=base, source_data=own, guard="off", seed=5)


def naive(modules: list[nn.Module], base: nn.Module, sets: list[Tensor], params: dict[str, Any]) -> Tensor:
    """Adam written out, through autograd's own gradient by the coefficients, all in float64; (sources, groups)."""
    origin = {name: tensor.double() for name, tensor in base.state_dict().items()}
    states = [{name: tensor.double() for name, tensor in module.state_dict().items()} for module in modules]
    layers = sorted({name.rpartition(".")[0] for name in origin}) if params["granularity"] == "layer" else [""]
    values = torch.full((len(modules), len(layers)), params["start"], dtype=torch.float64)
    mean, square = torch.zeros_like(values), torch.zeros_like(values)
    module = copy.deepcopy(base).double()
    batches: list[list[Tensor]] = [[] for _ in sets]
    for step in range(1, params["steps"] + 1):
        leaf = values.clone().requires_grad_()
        state = {}
        for name, tensor in origin.items():
            place = layers.index(name.rpartition(".")[0]) if params["granularity"] == "layer" else 0
            changes = [leaf[i, place] * (states[i][name] - tensor) for i in range(len(modules))]
            state[name] = tensor + torch.stack(changes).sum(0)
        loss = torch.zeros((), dtype=torch.float64)
        for at, inputs in enumerate(sets):
            epoch = (step - 1) // -(-len(inputs) // params["batch_size"])
            if not batches[at]:
                order = generator(5, 0, "adamerging", at, epoch).permutation(len(inputs))
                batches[at] = list(torch.split(inputs[torch.from_numpy(order)], params["batch_size"]))
            scores = functional_call(module, state, (batches[at].pop(0).double(),))
            chances = scores.softmax(1)
            loss = loss - (chances * chances.log()).sum(1).mean() / len(sets)
        (gradient,) = torch.autograd.grad(loss, leaf)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        values = values - params["lr"] * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return values


def learned(trace: FusedModule) -> dict[str, tuple[float, ...]]:
    return {decision.layer: decision.shares or () for decision in trace.trace.decisions()}


@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(2, 3),
    granularity=st.sampled_from(["layer", "task"]),
    apart=st.booleans(),
)
def test_the_coefficients_are_those_of_a_plain_descent(seed: int, count: int, granularity: str, apart: bool) -> None:
    base = mlp(seed)
    modules = [moved(base, seed + 1 + place) for place in range(count)]
    own = [points(seed + place, 14) for place in range(count)] if apart else []
    data = {"evaluation": points(seed, 20)}
    params = {"granularity": granularity, "steps": 4, "lr": 0.05, "batch_size": 8, "start": 0.3}
    result = fused(modules, base, data, own, **params)
    expected = naive(modules, base, [pair[0] for pair in own or [data["evaluation"]]], params)
    found = learned(result)
    names = ["0", "2", "4"]
    for name, shares in found.items():
        place = names.index(name[0]) if granularity == "layer" else 0
        assert np.allclose(shares, expected[:, place].numpy(), atol=2e-4), name
        assert all(share * 2**16 == round(share * 2**16) for share in shares)
    for name, tensor in result.module.state_dict().items():
        origin = base.state_dict()[name].double()
        change = torch.zeros_like(origin)
        for share, module in zip(found[name], modules, strict=True):
            change += share * (module.state_dict()[name].double() - origin)
        assert torch.equal(tensor, (origin + change).float()), name


def test_the_trace_has_the_entropy_before_and_after() -> None:
    base = mlp(1)
    modules = [moved(base, 2), moved(base, 3)]
    inputs = points(4, 50)[0]
    result = fused(modules, base, {"evaluation": points(4, 50)}, steps=40, lr=0.05)
    start = copy.deepcopy(base)
    with torch.no_grad():
        for name, tensor in start.named_parameters():
            for module in modules:
                tensor += 0.3 * (module.state_dict()[name] - base.state_dict()[name])
    for decision in result.trace.decisions():
        for found, module in ((decision.loss_before, start), (decision.loss_after, result.module)):
            chances = module(inputs).detach().double().softmax(1)
            assert found == pytest.approx(float(-(chances * chances.log()).sum(1).mean()), rel=1e-5)
        assert decision.loss_before is not None
        assert decision.loss_after is not None
        assert decision.loss_after < decision.loss_before


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.floats(0.1, 1e4))
def test_entropies_are_right_and_have_gradients_where_predictions_are_certain(seed: int, scale: float) -> None:
    scores = scale * torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores.requires_grad_()
    found = entropies(scores)
    chances = scores.detach().softmax(1).clamp(min=1e-300)
    assert torch.allclose(found, -(chances * chances.log()).sum(1), atol=1e-12)
    assert torch.isfinite(torch.autograd.grad(found.sum(), scores)[0]).all()
    assert float(entropies(torch.zeros(1, 8))) == pytest.approx(np.log(8), rel=1e-12)


def test_targets_are_not_looked_at() -> None:
    base = mlp(1)
    modules = [moved(base, 2), moved(base, 3)]
    inputs, targets = points(4, 20)
    states = [
        fused(modules, base, {"evaluation": (inputs, given)}).module.state_dict() for given in (targets, targets * 0)
    ]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_source_equal_to_the_base_keeps_its_first_coefficient_and_adds_nothing() -> None:
    base = mlp(1)
    result = fused([base, moved(base, 3)], base, {"evaluation": points(4, 20)}, lr=0.1)
    for shares in learned(result).values():
        assert abs(shares[0] - 0.3) < 2**-16
        assert abs(shares[1] - 0.3) > 0.05
    apart = fused([moved(base, 3), base], base, {"evaluation": points(4, 20)}, lr=0.1)
    assert all(torch.equal(t, apart.module.state_dict()[n]) for n, t in result.module.state_dict().items())


def test_statistics_of_normalisation_get_the_weighted_mean_and_dead_units_nothing() -> None:
    base = conv_net(1)
    modules = [moved(base, 2), moved(base, 3)]
    for module in modules:
        statistics = module.get_submodule("1").running_var
        assert isinstance(statistics, Tensor)
        statistics.mul_(4.0)
        with torch.no_grad():
            module.get_submodule("0").weight[1] = 0.0
    data = {"evaluation": points(4, 1, (1, 4, 4), 3)}  # a single example
    result = fused(modules, base, data, start=1.0)
    state = result.module.state_dict()
    assert torch.equal(state["1.running_var"], modules[0].state_dict()["1.running_var"])
    assert learned(result)["1.running_var"] == (0.5, 0.5)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_a_descent_that_leaves_the_numbers_ends_before() -> None:
    base = nn.Sequential(nn.Linear(2, 2, bias=False))
    modules = [copy.deepcopy(base) for _ in range(2)]
    with torch.no_grad():
        for module, size in zip(modules, (3e38, 1.0), strict=True):
            module[0].weight.fill_(size)
    data = {"evaluation": (torch.tensor([[3.0, 1.0], [2.0, -1.0]]), torch.tensor([0, 1]))}
    result = fused(modules, base, data)
    (decision,) = result.trace.decisions()
    assert decision.reason == "layer coefficients after 0 steps: the next gradient isn't finite"
    assert learned(result)["0.weight"] == pytest.approx((0.3, 0.3), abs=2**-16)


@pytest.mark.parametrize("own", [False, True])
def test_data_that_asks_for_values_is_refused(own: bool) -> None:
    base = mlp(1)
    inputs = points(4, 12)[0]
    values, classes = (inputs, torch.randn(12, 4)), points(4, 12)
    data = {"evaluation": classes if own else values}
    with pytest.raises(InvalidInput) as caught:
        fused([moved(base, 2), moved(base, 3)], base, data, [values, None] if own else [])
    (problem,) = caught.value.problems
    assert problem.code == "dataset.no_entropy"
    assert problem.location == ("sources.data" if own else "stages[0]")


@pytest.mark.parametrize(
    "change",
    [
        lambda table: column(table, "shares", lambda shares: [*shares[:-1], float("nan")]),
        lambda table: column(table, "shares", lambda shares: shares[:1]),
        lambda table: column(table, "shares", lambda _: None),
        lambda table: column(table, "step", lambda _: 1.0),
    ],
    ids=["nan", "short", "missing", "step"],
)
def test_a_trace_whose_coefficients_are_damaged_is_refused(change: Any, tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", mlp(3))
    data = {"evaluation": points(7, 8), "guard": "off"}
    document = recipe_document(tmp_path / "in", specialists(3), [QUICK], base=str(base), **data)
    trace = fuse(document, tmp_path / "out").output / "trace.parquet"
    pq.write_table(change(pq.read_table(trace)), tmp_path / "changed.parquet")
    sources = [source["checkpoint"] for source in document["sources"]]
    with pytest.raises(ReplayError) as caught:
        replay(sources, tmp_path / "changed.parquet", tmp_path / "again", base=base)
    assert [problem.code for problem in caught.value.problems] == ["replay.damaged"]


def test_it_replays_and_a_killed_run_is_gone_on_from(tmp_path: Path) -> None:
    base = save_checkpoint(tmp_path / "base", mlp(3))
    data = {"evaluation": points(7, 30), "holdout": points(8, 30), "guard": "report"}
    cogram = {"method": "cogram", "max_sweeps": {"layer": 1}}
    document = recipe_document(tmp_path / "in", specialists(3), [QUICK, cogram], base=str(base), **data)
    whole = fuse(document, tmp_path / "whole", journal=tmp_path / "journal")
    again = fuse(document, tmp_path / "again", earlier=[tmp_path / "journal"])
    assert again.report["resumed_after"] > 0
    sources = [source["checkpoint"] for source in document["sources"]]
    replay(sources, whole.output / "trace.parquet", tmp_path / "replayed", base=base)
    for folder in ("again", "replayed"):
        assert checkpoint_bytes(tmp_path / folder) == checkpoint_bytes(whole.output)
