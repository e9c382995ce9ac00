from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cogram_core.determinism import repeatable
from cogram_core.evaluation import evaluator as plain
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import Candidates, PlainEvaluator, Pool, batch_size
from cogram_core.evaluation.fast import FastEvaluator
from cogram_core.networks.layers import Layer
from cogram_core.networks.network import Network
from tests.core.factories import mlp, points, random
from tests.core.methods.families import FAMILIES

CPU = torch.device("cpu")
seeds = st.integers(0, 2**30)


def neurons(network: Network, layer: Layer, rows: list[int], seed: int, size: float = 1.0) -> Candidates:
    """Neurons with noise, some of them from a pool."""
    kept = torch.cat([network.rows(layer, row, row + 1) for row in rows])
    values = kept + size * torch.randn(kept.shape, generator=random(seed), dtype=torch.float64)
    if seed % 2:
        return Candidates(layer, torch.tensor(rows), None, values)
    return Candidates(layer, torch.tensor(rows), None, None, Pool(values.flip(0)), torch.arange(len(rows)).flip(0))


def weights(layer: Layer, places: list[int], seed: int, size: float = 1.0) -> Candidates:
    at = torch.tensor(places)
    values = size * torch.randn(len(places), generator=random(seed), dtype=torch.float64)
    return Candidates(layer, at // layer.width, at % layer.width, values)


def put(network: Network, candidates: Candidates, place: int) -> None:
    row, value = int(candidates.rows[place]), candidates.numbers[place]
    if candidates.columns is None:
        network.assign_row(candidates.layer, row, value)
    else:
        network.assign_weight(candidates.layer, row, int(candidates.columns[place]), value)


def naive(network: Network, candidates: Candidates, data: Dataset) -> list[float]:
    """Each candidate in a copy of the whole network."""
    found = []
    for place in range(len(candidates)):
        other = copy.deepcopy(network.module)
        own, layer = other.state_dict(), candidates.layer
        row, value = int(candidates.rows[place]), candidates.numbers[place]
        parts = [own[name][row].view(-1) for name in layer.tensors]
        whole = torch.cat(parts)
        whole[slice(None) if candidates.columns is None else int(candidates.columns[place])] = value
        for part, new in zip(parts, whole.split([len(part) for part in parts]), strict=True):
            part.copy_(new)
        found.append(PlainEvaluator(Network(other, data.inputs[:1]), data).loss())
    return found


def tried(draw: st.DataObject, network: Network, layer: Layer) -> Candidates:
    """Several candidates, units more than once, of one of three magnitudes."""
    seed, size = draw.draw(seeds), draw.draw(st.sampled_from([1e-4, 1.0, 1e4]))
    if draw.draw(st.booleans()):
        rows = draw.draw(st.lists(st.integers(0, layer.neurons - 1), min_size=1, max_size=5))
        return neurons(network, layer, rows, seed, size)
    most = layer.neurons * layer.width - 1
    return weights(layer, draw.draw(st.lists(st.integers(0, most), min_size=1, max_size=5)), seed, size)


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=4)
@given(draw=st.data())
def test_the_fast_evaluator_gives_the_losses_of_full_passes(family: str, draw: st.DataObject) -> None:
    seed = draw.draw(seeds)
    module, (inputs, targets) = FAMILIES[family].modules(seed)[0], FAMILIES[family].data(seed)
    with pytest.MonkeyPatch.context() as patch, repeatable(1, CPU):
        if draw.draw(st.booleans()):
            patch.setattr(plain, "BATCH", 5)
        network = Network(module, inputs[:1])
        counts = torch.rand(len(inputs), generator=random(seed), dtype=torch.float64) + 0.1
        with network.precision(torch.float64):
            wide = inputs.double() if inputs.is_floating_point() else inputs
            data = Dataset(wide, targets, counts if draw.draw(st.booleans()) else None)
            evaluator = FastEvaluator(network, data)
            fine = [layer for layer in network.layers if layer.neurons]
            for _ in range(6):
                layer = draw.draw(st.sampled_from(fine))
                candidates, before = tried(draw, network, layer), network.state()
                found = evaluator.losses(candidates)
                assert found == pytest.approx(naive(network, candidates, data), rel=1e-11, abs=1e-15)
                assert all(torch.equal(tensor, before[name]) for name, tensor in network.state().items())
                step = draw.draw(st.sampled_from(["stay", "move", "move another", "change"]))
                place = len(candidates) - 1
                if step == "move":
                    evaluator.moving(candidates, place)
                    put(network, candidates, place)
                elif step == "move another":
                    other = tried(draw, network, layer)
                    evaluator.moving(other, 0)
                    put(network, other, 0)
                elif step == "change":
                    layer = draw.draw(st.sampled_from(network.layers))
                    value = {name: 1.1 * tensor for name, tensor in network.value(layer).items()}
                    network.assign(layer, value)
                    evaluator.changed(layer)
                assert evaluator.loss() == PlainEvaluator(network, data).loss()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_losses_of_whole_layers_are_the_same_to_the_last_bit(family: str, dtype: torch.dtype) -> None:
    module, (inputs, targets) = FAMILIES[family].modules(3)[0], FAMILIES[family].data(4)
    with repeatable(1, CPU):
        network = Network(module, inputs[:1])
        with network.precision(dtype):
            data = Dataset(inputs.to(dtype) if inputs.is_floating_point() else inputs, targets)
            evaluator, slow = FastEvaluator(network, data), PlainEvaluator(network, data)
            for layer in (*reversed(network.layers), *network.layers):
                values = [
                    {name: tensor * factor for name, tensor in network.value(layer).items()} for factor in (0.5, 1.5)
                ]
                assert evaluator.layer_losses(layer, values) == slow.layer_losses(layer, values)
                network.assign(layer, values[0])
                evaluator.changed(layer)


@pytest.mark.parametrize("family", ["relu", "gelu", "convolution", "decoder", "encoder"])
@pytest.mark.parametrize("broken", [math.nan, math.inf, 1e300])
def test_a_candidate_that_breaks_the_network_costs_infinity_and_leaves_no_trace(family: str, broken: float) -> None:
    module, (inputs, targets) = FAMILIES[family].modules(5)[0], FAMILIES[family].data(6)
    with repeatable(1, CPU):
        network = Network(module, inputs[:1])
        with network.precision(torch.float64):
            data = Dataset(inputs.double() if inputs.is_floating_point() else inputs, targets)
            evaluator, slow = FastEvaluator(network, data), PlainEvaluator(network, data)
            for layer in [layer for layer in network.layers if layer.neurons]:
                candidates = neurons(network, layer, [0, layer.neurons - 1, 0], 1)
                assert candidates.values is not None
                values = candidates.values.clone()
                values[1] = broken
                mixed = replace(candidates, values=values)
                found, expected = evaluator.losses(mixed), slow.losses(mixed)
                assert found == pytest.approx(expected, rel=1e-11)
                assert evaluator.losses(candidates) == pytest.approx(slow.losses(candidates), rel=1e-11)
                evaluator.moving(mixed, 0)
                put(network, mixed, 0)
                assert evaluator.losses(candidates) == pytest.approx(slow.losses(candidates), rel=1e-11)


def test_a_network_that_is_broken_as_it_stands_is_repaired_by_the_right_candidate() -> None:
    inputs, targets = points(1)
    network = Network(mlp(1), inputs[:1])
    with network.precision(torch.float64):
        data = Dataset(inputs.double(), targets)
        layer = network.layers[1]
        whole = neurons(network, layer, [2], 1)
        network.assign_row(layer, 2, torch.full((layer.width,), math.nan))
        evaluator = FastEvaluator(network, data)
        assert evaluator.loss() == math.inf
        assert evaluator.losses(neurons(network, layer, [0, 2], 3)) == [math.inf, math.inf]
        assert evaluator.losses(whole) == pytest.approx(naive(network, whole, data), rel=1e-11)


def test_which_tokens_the_examples_read_is_known() -> None:
    module, (ids, labels) = FAMILIES["decoder"].modules(1)[0], FAMILIES["decoder"].data(2)
    network = Network(module, ids[:1])
    evaluator = FastEvaluator(network, Dataset(ids, labels))
    found = {layer.name: evaluator.touched(layer) for layer in network.layers}
    assert found.pop("tokens") == frozenset(ids.flatten().tolist())
    assert found.pop("places") == frozenset(range(6))
    assert set(found.values()) == {None}


def test_losses_of_candidates_are_those_of_networks_that_hold_them() -> None:
    inputs, targets = points(0)
    network = Network(mlp(0), inputs[:1])
    judge, layer = PlainEvaluator(network, Dataset(inputs, targets)), network.layers[1]
    before = network.state()
    values = [{name: value + shift for name, value in network.value(layer).items()} for shift in (0.0, 0.3, -2.0)]
    expected = []
    for candidate in values:
        other = copy.deepcopy(network.module)
        for name, value in candidate.items():
            other.state_dict()[name].copy_(value)
        expected.append(float(nn.functional.cross_entropy(other(inputs).double(), targets)))
    assert judge.layer_losses(layer, values) == pytest.approx(expected, rel=1e-9)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state().items())
    for candidates in (neurons(network, layer, [1, 3, 1], 4), weights(layer, [0, 8, 17], 5)):
        assert judge.losses(candidates) == pytest.approx(naive(network, candidates, Dataset(inputs, targets)), rel=1e-6)
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state().items())


def test_a_loss_that_is_no_number_counts_as_infinite() -> None:
    inputs, targets = points(0)
    network = Network(mlp(0), inputs[:1])
    judge, layer = PlainEvaluator(network, Dataset(inputs, targets)), network.layers[0]
    broken = {name: torch.full_like(value, math.nan) for name, value in network.value(layer).items()}
    assert judge.layer_losses(layer, [broken]) == [math.inf]
    assert math.isfinite(judge.loss())


def test_weights_make_an_example_count_as_often_as_they_say() -> None:
    inputs, targets = points(1, 6)
    counts = torch.tensor([1, 4, 2, 1, 3, 1])
    network = Network(mlp(1), inputs[:1])
    weighted = PlainEvaluator(network, Dataset(inputs, targets, counts.double())).loss()
    repeated = PlainEvaluator(network, Dataset(inputs.repeat_interleave(counts, 0), targets.repeat_interleave(counts)))
    assert weighted == pytest.approx(repeated.loss(), rel=1e-6)


def test_batches_do_not_change_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Dataset(*points(2, 23))
    judge = PlainEvaluator(Network(mlp(2), data.inputs[:1]), data)
    whole = judge.example_losses()
    monkeypatch.setattr(plain, "BATCH", 5)
    assert torch.allclose(judge.example_losses(), whole, rtol=1e-5, atol=1e-6)


def test_large_examples_run_fewer_at_once() -> None:
    assert batch_size(torch.zeros(3, 6)) == plain.BATCH
    assert batch_size(torch.zeros(3, 2**20)) == 4
    assert batch_size(torch.zeros(3, 128, dtype=torch.int64)) == 64
    assert batch_size(torch.zeros(1, 2**23)) == 1
