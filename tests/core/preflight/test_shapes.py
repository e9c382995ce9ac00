from __future__ import annotations

from typing import Any

import pytest
import torch

from cogram_core.networks.network import Network
from cogram_core.networks.sequential import build
from cogram_core.preflight.estimates import units
from cogram_core.preflight.shapes import passings
from cogram_core.recipe import SequentialNetwork
from cogram_core.recipe.layers import AnyLayer
from tests.core.factories import initialise


def described(*layers: dict[str, Any]) -> tuple[AnyLayer, ...]:
    return SequentialNetwork.model_validate({"kind": "sequential", "layers": layers}).layers


def linear(into: int, out: int, **more: Any) -> dict[str, Any]:
    return {"type": "linear", "in_features": into, "out_features": out, **more}


def conv(into: int, out: int, kernel: int | list[int] = 3, **more: Any) -> dict[str, Any]:
    return {"type": "conv2d", "in_channels": into, "out_channels": out, "kernel_size": kernel, **more}


RELU = {"type": "relu"}
BRANCH = [conv(4, 6, padding=1), {"type": "batchnorm2d", "num_features": 6}, RELU, conv(6, 6, padding="same", groups=3)]
NETWORKS: dict[str, tuple[list[dict[str, Any]], tuple[int, ...]]] = {
    "linear": ([linear(6, 8), RELU, {"type": "layernorm", "normalized_shape": 8}, linear(8, 4, bias=False)], (6,)),
    "sequence": ([linear(6, 8), RELU, linear(8, 4)], (5, 6)),
    "convolutions": (
        [
            conv(3, 4, [3, 2], stride=[2, 1], padding=[1, 0], dilation=[1, 2]),
            {"type": "groupnorm", "num_groups": 2, "num_channels": 4},
            {"type": "maxpool2d", "kernel_size": 2, "padding": 1},
            conv(4, 5, padding="valid"),
            {"type": "avgpool2d", "kernel_size": [2, 1], "stride": 1},
            {"type": "adaptiveavgpool2d", "output_size": [2, 3]},
            {"type": "flatten"},
            linear(30, 4),
        ],
        (3, 16, 15),
    ),
    "one dimension": (
        [
            {"type": "unflatten", "dim": 1, "unflattened_size": [2, 9]},
            {"type": "conv1d", "in_channels": 2, "out_channels": 4, "kernel_size": 3, "stride": 2, "padding": 1},
            {"type": "batchnorm1d", "num_features": 4, "affine": False},
            {"type": "flatten", "start_dim": 1, "end_dim": 2},
            linear(20, 3),
        ],
        (18,),
    ),
    "residuals": (
        [
            conv(3, 4, 1),
            {"type": "residual", "layers": BRANCH, "shortcut": [conv(4, 6, 1), RELU]},
            {"type": "residual", "layers": [{"type": "residual", "layers": [conv(6, 6, padding=1), RELU]}, RELU]},
            {"type": "flatten", "start_dim": 2},
            linear(36, 2),
        ],
        (3, 6, 6),
    ),
    "tokens": (
        [
            {"type": "embedding", "num_embeddings": 9, "embedding_dim": 4},
            {"type": "residual", "layers": [linear(4, 4), {"type": "gelu"}]},
            linear(4, 9),
        ],
        (7,),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_told_by_descriptions_are_those_of_a_run(name: str) -> None:
    layers, shape = described(*NETWORKS[name][0]), NETWORKS[name][1]
    module = build(layers, torch.float32, torch.device("cpu"))
    initialise(module, 0)
    example = torch.zeros(1, *shape, dtype=torch.int64 if name == "tokens" else torch.float32)
    network = Network(module, example)
    seen: dict[str, tuple[int, int]] = {}
    for layer in network.layers:

        def note(_: Any, given: tuple[torch.Tensor], output: torch.Tensor, name: str = layer.name) -> None:
            seen[name] = given[0].numel(), output.numel()

        module.get_submodule(layer.name).register_forward_hook(note)
    output = module(example)
    found = passings(layers, shape)
    assert found is not None
    told = {one.name: (one.arriving, one.leaving) for one in found[0]}
    assert told == seen
    assert found[1] == output.shape[1:]
    calls = network.calls
    before = {name: sum(call.numbers for call in calls.before(calls.cut(name))) for name in seen}
    assert {one.name: one.before for one in found[0]} == before


@pytest.mark.parametrize("name", NETWORKS)
def test_units_told_by_descriptions_are_those_that_decisions_are_taken_on(name: str) -> None:
    layers = described(*NETWORKS[name][0])
    module = build(layers, torch.float32, torch.device("cpu"))
    example = torch.zeros(1, *NETWORKS[name][1], dtype=torch.int64 if name == "tokens" else torch.float32)
    found = Network(module, example).layers
    assert units(layers) == {
        "layer": len(found),
        "neuron": sum(layer.neurons for layer in found),
        "weight": sum(layer.neurons * layer.width for layer in found),
    }


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (linear(6, 8), ()),
        (conv(1, 1), (1, 4)),
        (conv(1, 1, 5), (1, 4, 4)),
        ({"type": "conv1d", "in_channels": 1, "out_channels": 1, "kernel_size": 1}, (1, 4, 4)),
        ({"type": "maxpool2d", "kernel_size": 5}, (1, 4, 4)),
        ({"type": "adaptiveavgpool2d", "output_size": 1}, (4,)),
        ({"type": "flatten", "start_dim": 3}, (4,)),
        ({"type": "flatten", "end_dim": 8}, (4,)),
        ({"type": "unflatten", "dim": 1, "unflattened_size": [3, 3]}, (4,)),
        ({"type": "unflatten", "dim": 2, "unflattened_size": [2, 2]}, (4,)),
    ],
)
def test_inputs_that_layers_can_not_take_have_no_sizes(layer: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert passings(described(layer), shape) is None
