from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cogram_core.networks.network import Network
from cogram_core.networks.permutations import find_symmetry, preserves
from tests.core.factories import initialise, random
from tests.core.methods.families import FAMILIES
from tests.core.networks.permutable import KINDS, OUTPUT, shuffled, symmetry_of

ACTIVATIONS = [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Identity]


def computes_the_same(one: nn.Module, other: nn.Module, inputs: Tensor) -> bool:
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    with torch.no_grad():
        first, second = (copy.deepcopy(module).double()(inputs) for module in (one, other))
    return torch.allclose(first, second, rtol=1e-9, atol=1e-9 * float(first.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_these_units_can_be_permuted_and_the_reasons_are_told(kind: str) -> None:
    known = KINDS[kind]
    found = symmetry_of(known.module(0), known.inputs(0))
    assert [(group.layer, group.units, group.features) for group in found.groups] == list(known.groups)
    assert found.left == dict(known.left)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**30))
def test_whatever_the_values_a_permuted_network_computes_the_same(kind: str, seed: int) -> None:
    module, inputs = KINDS[kind].module(seed), KINDS[kind].inputs(seed)
    found = symmetry_of(module, inputs)
    moved = shuffled(module, found, seed)
    assert computes_the_same(module, moved, inputs)
    if any(group.units > 3 for group in found.groups):
        state = moved.state_dict()
        assert any(not torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


@st.composite
def chains(draw: st.DrawFn) -> tuple[nn.Sequential, tuple[int, ...], list[int]]:
    """A random chain of linear layers, or of convolutions and linear layers; its inputs' shape; its hidden units."""
    activation, hidden = draw(st.sampled_from(ACTIVATIONS)), draw(st.lists(st.integers(2, 7), min_size=1, max_size=3))
    layers: list[nn.Module] = []
    into = 1
    if convolutions := draw(st.booleans()):
        for units in hidden:
            layers += [nn.Conv2d(into, units, 3, padding=1, bias=draw(st.booleans()))]
            layers += [nn.BatchNorm2d(units)] if draw(st.booleans()) else []
            layers += [activation(), *([nn.MaxPool2d(2, 1)] if draw(st.booleans()) else [nn.AvgPool2d(3, 1, 1)])]
            into = units
        pooled = draw(st.booleans())
        layers += [nn.AdaptiveAvgPool2d((1, 2)) if pooled else nn.AdaptiveMaxPool2d(2), nn.Flatten()]
        hidden = [*hidden, draw(st.integers(2, 7))]
        layers += [nn.Linear(into * (2 if pooled else 4), hidden[-1]), activation(), nn.Linear(hidden[-1], 3)]
    else:
        into = 5
        for units in hidden:
            layers += [nn.Linear(into, units, bias=draw(st.booleans())), activation()]
            layers += draw(st.sampled_from([[], [nn.LayerNorm(units)], [nn.BatchNorm1d(units)], [nn.Dropout(0.5)]]))
            into = units
        layers.append(nn.Linear(into, 3))
    return nn.Sequential(*layers), (1, 6, 6) if convolutions else (5,), hidden


@settings(deadline=None, max_examples=25)
@given(chain=chains(), seed=st.integers(0, 2**30))
def test_every_hidden_layer_of_a_chain_can_be_permuted(
    chain: tuple[nn.Sequential, tuple[int, ...], list[int]], seed: int
) -> None:
    network, shape, hidden = chain
    module, inputs = initialise(network, seed), torch.randn(6, *shape, generator=random(seed))
    found = symmetry_of(module, inputs)
    assert [group.units for group in found.groups] == hidden
    assert list(found.left.values()) == [OUTPUT]
    assert computes_the_same(module, shuffled(module, found, seed), inputs)


@pytest.mark.parametrize("family", ["twice", "decoder", "encoder", "residual", "between", "outside"])
def test_what_is_found_in_other_networks_is_exact_too(family: str) -> None:
    module, inputs = FAMILIES[family].modules(0)[0], FAMILIES[family].data(0)[0]
    found = symmetry_of(module, inputs)
    # A sum with the inputs, a weight that others read: nothing can be permuted there.
    assert bool(found.groups) == (family in {"twice", "decoder", "encoder"})
    assert computes_the_same(module, shuffled(module, found, 1), inputs)


def test_a_layer_that_runs_twice_has_its_rows_and_columns_permuted_together() -> None:
    (group,) = symmetry_of(FAMILIES["twice"].build(), FAMILIES["twice"].data(0)[0]).groups
    axes = {(axis.tensor, axis.dim) for axis in group.axes}
    assert {
        ("first.weight", 0),
        ("again.weight", 0),
        ("again.weight", 1),
        ("again.bias", 0),
        ("last.weight", 1),
    } <= axes


def test_queries_move_in_larger_blocks_than_the_keys_that_they_share() -> None:
    kind = KINDS["grouped queries"]
    heads = symmetry_of(kind.module(0), kind.inputs(0)).groups[1]
    assert {(axis.tensor, axis.dim, axis.before, axis.after) for axis in heads.axes} == {
        ("query.weight", 0, 1, 6),
        ("query.bias", 0, 1, 6),
        ("key.weight", 0, 1, 3),
        ("key.bias", 0, 1, 3),
        ("value.weight", 0, 1, 3),
        ("out.weight", 1, 1, 6),
    }


def test_a_fused_and_transposed_weight_has_three_blocks_of_columns() -> None:
    kind = KINDS["fused"]
    stream, heads, gated = symmetry_of(kind.module(0), kind.inputs(0)).groups
    assert {("mix.weight", 1, 3, 4), ("mix.bias", 0, 3, 4), ("out.weight", 0, 1, 4)} == {
        (axis.tensor, axis.dim, axis.before, axis.after) for axis in heads.axes
    }
    assert {("widen.weight", 1, 2, 1), ("widen.bias", 0, 2, 1), ("down.weight", 0, 1, 1)} == {
        (axis.tensor, axis.dim, axis.before, axis.after) for axis in gated.axes
    }
    tied = [axis.tensor for axis in stream.axes if axis.tensor.startswith(("tokens", "head"))]
    assert tied == ["tokens.weight"]  # once, under the name that the checkpoint has


def test_a_zero_branch_does_not_hide_that_it_takes_part() -> None:
    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return torch.as_tensor(self.last(self.first(inputs) + self.second(inputs)))

    module, inputs = initialise(Silent(), 0), torch.randn(6, 4, generator=random(0))
    with torch.no_grad():
        module.get_submodule("second").weight.zero_()
        module.get_submodule("second").bias.zero_()
    (group,) = symmetry_of(module, inputs).groups
    assert {axis.tensor.split(".")[0] for axis in group.axes} == {"first", "second", "last"}


def test_an_order_that_changes_what_a_network_computes_is_told_from_one_that_does_not() -> None:
    kind = KINDS["onto inputs"]
    module, inputs = kind.module(3), kind.inputs(3)
    (group,) = symmetry_of(module, inputs).groups
    network = Network(copy.deepcopy(module), inputs[:1])
    order = torch.randperm(group.units, generator=random(1))
    assert preserves(network, inputs, [(group, order)])
    half = type(group)(group.layer, group.units, 1, group.axes[:1], group.readers)
    assert not preserves(network, inputs, [(half, order)])
    assert all(torch.equal(network.tensor(name), tensor) for name, tensor in module.state_dict().items())


def test_the_search_gives_the_same_groups_whatever_the_network_holds_and_leaves_no_hooks() -> None:
    kind = KINDS["residual"]
    first, second = kind.module(1), kind.module(2)
    assert symmetry_of(first, kind.inputs(1)) == symmetry_of(second, kind.inputs(2))
    network = Network(first, kind.inputs(1)[:1])
    find_symmetry(network, kind.inputs(1))
    assert not any(inner._forward_pre_hooks or inner._forward_hooks for inner in network.module.modules())
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
