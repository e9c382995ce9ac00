from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cogram_core.errors import NetworkError
from cogram_core.networks.network import Network
from cogram_core.networks.sequential import build
from cogram_core.recipe import SequentialNetwork
from tests.core.factories import conv_net, describe, mlp, points, random
from tests.core.methods.families import DECODER, ENCODER, FAMILIES


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.second(self.first(inputs)))


class Scaled(nn.Linear):
    """A linear layer with a tensor that has no row a neuron."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out)
        self.scale = nn.Parameter(torch.tensor(2.0))


class Backwards(nn.Module):
    """Runs its layers in another order than it names them, and one not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.unused, self.first = nn.Linear(5, 3), nn.Linear(2, 2), nn.Linear(6, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.last(self.first(inputs)))


class Turning(nn.Module):
    """Has a buffer that no checkpoint holds, an integer one, and numbers that float32 can't hold after float64."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("turn", torch.tensor([0.1, -0.0, 3e-45]), persistent=False)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.linear(inputs)) + self.turn


def refusal(module: nn.Module, example: Tensor) -> str:
    with pytest.raises(NetworkError) as caught:
        Network(module, example)
    return caught.value.problems[0].code


def test_layers_come_in_the_order_in_which_they_run_those_that_do_not_first() -> None:
    network = Network(Backwards(), torch.zeros(1, 6))
    names = [layer.name for layer in network.layers]
    assert names.index("first") < names.index("last")
    assert sorted(names) == ["first", "last", "unused"]
    assert network.output_shape == (3,)


@pytest.mark.parametrize(("family", "order"), [("decoder", DECODER), ("residual", ["first", "norm", "inner", "head"])])
def test_layers_inside_of_others_complete_before_them(family: str, order: list[str]) -> None:
    network = Network(FAMILIES[family].build(), FAMILIES[family].data(0)[0][:1])
    assert [layer.name for layer in network.layers] == order


def test_a_layer_that_is_used_without_being_called_stands_before_the_one_that_uses_it() -> None:
    names = [layer.name for layer in Network(FAMILIES["encoder"].build(), FAMILIES["encoder"].data(0)[0][:1]).layers]
    assert names.index("0.self_attn.out_proj") < names.index("0.self_attn")
    assert set(names) == set(ENCODER)


def test_a_layer_has_its_own_floating_tensors_and_as_many_neurons_as_outputs() -> None:
    network = Network(conv_net(0), torch.zeros(1, 1, 4, 4))
    found = {layer.name: (set(layer.tensors), layer.neurons) for layer in network.layers}
    norm = {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert found == {"0": ({"0.weight", "0.bias"}, 3), "1": (norm, 0), "4": ({"4.weight", "4.bias"}, 3)}
    assert set(network.names) - set(network.parameters) == {"1.running_mean", "1.running_var"}


def test_a_layer_with_a_tensor_that_has_no_rows_has_a_layer_level_only() -> None:
    network = Network(nn.Sequential(Scaled(6, 4)), torch.zeros(1, 6))
    assert network.layers[0].neurons == 0


@pytest.mark.parametrize("family", ["relu", "convolution", "decoder", "encoder"])
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**30))
def test_a_layer_s_matrix_is_its_tensors_row_by_row_with_the_bias_last(family: str, seed: int) -> None:
    module = FAMILIES[family].modules(seed)[0]
    state = copy.deepcopy(module.state_dict())
    network = Network(module, FAMILIES[family].data(0)[0][:1])
    for layer in [layer for layer in network.layers if layer.neurons]:
        whole = network.rows(layer, 0, layer.neurons)
        assert whole.shape == (layer.neurons, layer.width)
        bias = state.get(f"{layer.name}.bias")
        weight = state[f"{layer.name}.weight"].flatten(1)
        assert torch.equal(whole, weight if bias is None else torch.cat([weight, bias[:, None]], dim=1))
        parts = layer.split(whole)
        assert parts.keys() == set(layer.tensors)
        assert all(torch.equal(part, state[name]) for name, part in parts.items())
        for column in range(layer.width):
            name, at = layer.place(column)
            assert torch.equal(state[name].reshape(layer.neurons, -1)[:, at], whole[:, column])
        for column in (-1, layer.width):
            with pytest.raises(ValueError, match="no column"):
                layer.place(column)


@settings(deadline=None, max_examples=10)
@given(row=st.integers(0, 2), column=st.integers(0, 48))
def test_assigning_a_weight_or_a_neuron_touches_its_place_alone(row: int, column: int) -> None:
    network = Network(conv_net(0), torch.zeros(1, 1, 4, 4))
    layer = network.layers[2]
    expected, before = network.rows(layer, 0, 3), network.state()
    network.assign_weight(layer, row, column, torch.tensor(7.0))
    expected[row, column] = 7.0
    assert torch.equal(network.rows(layer, 0, 3), expected)
    value = torch.randn(layer.width, generator=random(column))
    network.assign_row(layer, row, value)
    expected[row] = value
    assert torch.equal(network.rows(layer, 0, 3), expected)
    assert torch.equal(network.rows(layer, row, row + 1)[0], value)
    assert all(torch.equal(network.tensor(name), before[name]) for name in before if not name.startswith("4."))


def test_precision_puts_every_bit_back_whatever_happened_inside() -> None:
    module = Turning()
    with torch.no_grad():
        module.linear.weight[0] = torch.tensor([1e-45, -0.0, 3e38, 0.1, torch.inf, -1.5])
    bits = {
        name: t.detach().clone().view(torch.int32)
        for name, t in {**dict(module.named_parameters()), "turn": module.turn}.items()
    }
    network = Network(module, torch.zeros(1, 6))
    with pytest.raises(KeyboardInterrupt), network.precision(torch.float64):
        _interrupted(network, module)
    after = {**dict(module.named_parameters()), "turn": module.turn}
    assert all(torch.equal(after[name].detach().view(torch.int32), kept) for name, kept in bits.items())
    assert (network.dtype, module.steps.dtype) == (torch.float32, torch.int64)


def _interrupted(network: Network, module: Turning) -> None:
    assert network.dtype == module.turn.dtype == torch.float64
    assert network.logits(torch.zeros(2, 6, dtype=torch.float64)).dtype == torch.float64
    raise KeyboardInterrupt


def test_a_tied_tensor_is_one_under_its_first_name_and_cut_before_all_that_use_it() -> None:
    module = nn.Sequential(nn.Linear(6, 6), Tied(), nn.Linear(6, 2))
    network = Network(module, torch.zeros(1, 6))
    tied, second = (next(layer for layer in network.layers if layer.name == name) for name in ("1.first", "1.second"))
    assert network.names == (
        "0.weight",
        "0.bias",
        "1.first.weight",
        "1.first.bias",
        "1.second.bias",
        "2.weight",
        "2.bias",
    )
    assert (tied.tensors, tied.neurons, tied.module) == (("1.first.weight", "1.first.bias"), 6, None)
    assert network.cut(tied).module == "1"
    assert (second.tensors, second.neurons, network.cut(second).module) == (("1.second.bias",), 0, "1.second")
    # What changes both comes before what changes the second alone, when layers are visited backward.
    assert [layer.name for layer in network.layers] == ["0", "1.second", "1.first", "2"]


def test_outputs_with_other_values_are_those_of_a_network_that_has_them() -> None:
    network, other, inputs = Network(Tied(), torch.zeros(1, 6)), Tied(), torch.randn(5, 6, generator=random(0))
    values = {name: other.state_dict()[name] for name in network.names}
    assert torch.equal(network.outputs(values, inputs), other(inputs))


def test_a_network_that_cannot_run_on_its_data_is_refused() -> None:
    assert refusal(mlp(0), torch.zeros(1, 7)) == "network.cannot_run"


def test_a_network_that_gives_no_entry_an_example_is_refused() -> None:
    assert refusal(nn.Sequential(nn.Linear(6, 4), nn.Flatten(0)), torch.zeros(1, 6)) == "network.wrong_output"


def test_a_described_chain_computes_what_the_described_module_computes() -> None:
    module = conv_net(4)
    layers = SequentialNetwork.model_validate({"kind": "sequential", "layers": tuple(describe(module))}, strict=False)
    chain = build(layers.layers, torch.float32, torch.device("cpu"))
    chain.load_state_dict(copy.deepcopy(module.state_dict()))
    inputs, _ = points(0, 9, (1, 4, 4), 3)
    with torch.no_grad():
        assert torch.equal(chain.eval()(inputs), module(inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_disfigured_layer_differs_everywhere_and_comes_back_to_the_bit(dtype: torch.dtype) -> None:
    network = Network(FAMILIES["decoder"].modules(1)[0].to(dtype), FAMILIES["decoder"].data(1)[0][:1])
    before = network.state()
    for layer in network.layers:
        with network.disfigured(layer):
            for name, tensor in network.state().items():
                apart = (tensor - before[name]).abs() > 0.5 * before[name].abs()
                assert bool((apart | tensor.isnan()).all()) == (name in layer.tensors)
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state().items())
    with pytest.raises(KeyboardInterrupt), network.disfigured(network.layers[0]):
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state().items())
