from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cogram_core.errors import NetworkError
from cogram_core.networks.network import Network, Unit
from cogram_core.networks.sequential import build
from cogram_core.recipe import SequentialNetwork
from tests.core.factories import conv_net, describe, mlp, points


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


def refusal(module: nn.Module, example: Tensor) -> str:
    with pytest.raises(NetworkError) as caught:
        Network(module, example)
    return caught.value.problems[0].code


def test_layers_come_in_the_order_in_which_they_run() -> None:
    network = Network(Backwards(), torch.zeros(1, 6))
    assert [layer.name for layer in network.layers] == ["first", "last"]
    assert "unused.weight" in network.names
    assert network.output_shape == (3,)


def test_a_layer_has_its_own_floating_tensors_and_as_many_neurons_as_outputs() -> None:
    network = Network(conv_net(0), torch.zeros(1, 1, 4, 4))
    found = {layer.name: (set(layer.tensors), layer.neurons) for layer in network.layers}
    norm = {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert found == {"0": ({"0.weight", "0.bias"}, 3), "1": (norm, 0), "4": ({"4.weight", "4.bias"}, 3)}
    assert set(network.names) - set(network.parameters) == {"1.running_mean", "1.running_var"}


def test_a_layer_with_a_tensor_that_has_no_rows_has_a_layer_level_only() -> None:
    network = Network(nn.Sequential(Scaled(6, 4)), torch.zeros(1, 6))
    assert network.layers[0].neurons == 0


def test_assigning_a_neuron_touches_its_row_and_bias_entry_alone() -> None:
    network = Network(mlp(0), torch.zeros(1, 6))
    before = network.state()
    layer = network.layers[1]
    network.assign(Unit(layer, 2), {"2.weight": torch.ones(8), "2.bias": torch.tensor(7.0)})
    after = network.state()
    assert torch.equal(after["2.weight"][2], torch.ones(8))
    assert float(after["2.bias"][2]) == 7.0
    before["2.weight"][2], before["2.bias"][2] = after["2.weight"][2], after["2.bias"][2]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_tied_tensors_are_refused_by_name() -> None:
    assert refusal(Tied(), torch.zeros(1, 6)) == "network.tied"


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
