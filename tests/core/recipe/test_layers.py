from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from cogram_core.recipe import Recipe, SequentialNetwork
from cogram_core.recipe.layers import Residual
from tests.core.recipe.documents import document, messages, problems

ONE_OF_EACH: dict[str, dict[str, Any]] = {
    "Linear": {"in_features": 2, "out_features": 3},
    "Conv1d": {"in_channels": 2, "out_channels": 3, "kernel_size": 1},
    "Conv2d": {"in_channels": 2, "out_channels": 3, "kernel_size": [1, 2]},
    "BatchNorm1d": {"num_features": 2},
    "BatchNorm2d": {"num_features": 2},
    "LayerNorm": {"normalized_shape": [2, 3]},
    "GroupNorm": {"num_groups": 2, "num_channels": 4},
    "ReLU": {},
    "GELU": {"approximate": "tanh"},
    "SiLU": {},
    "Tanh": {},
    "Sigmoid": {},
    "MaxPool2d": {"kernel_size": 2},
    "AvgPool2d": {"kernel_size": [2, 3], "stride": [1, 1]},
    "AdaptiveAvgPool2d": {"output_size": 1},
    "Flatten": {},
    "Unflatten": {"dim": 1, "unflattened_size": [2, 3]},
    "Dropout": {"p": 0.1},
    "Identity": {},
    "Embedding": {"num_embeddings": 5, "embedding_dim": 3},
}


def network(*layers: Any) -> dict[str, Any]:
    return document(network={"kind": "sequential", "layers": list(layers)})


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("spelling", [str, str.lower, str.upper])
def test_a_type_is_torchs_class_name_in_any_case(name: str, spelling: Any) -> None:
    recipe = Recipe.from_document(network({"type": spelling(name), **ONE_OF_EACH[name]}))
    assert isinstance(recipe.network, SequentialNetwork)
    (layer,) = recipe.network.layers
    assert layer.torch_class == name
    assert hasattr(nn, layer.torch_class)
    assert Recipe.from_document(recipe.to_document()) == recipe


CONV = {"in_channels": 4, "out_channels": 4, "kernel_size": 3}


@pytest.mark.parametrize(
    ("layer", "place", "code"),
    [
        ({"type": "lineer"}, "", "invalid_value"),
        ({"type": "LSTM"}, "", "invalid_value"),
        ({"type": 3}, "", "invalid_value"),
        ({"in_features": 2}, "", "invalid_value"),
        ("relu", "", "invalid_value"),
        ({"type": "Linear", "in_features": 2}, ".out_features", "missing_key"),
        ({"type": "Linear", "in_features": "2", "out_features": 2}, ".in_features", "invalid_value"),
        ({"type": "Linear", "in_features": True, "out_features": 2}, ".in_features", "invalid_value"),
        ({"type": "Linear", "in_features": 2**25, "out_features": 2}, ".in_features", "invalid_value"),
        ({"type": "Linear", "in_features": 2, "out_features": 2, "bias": 1}, ".bias", "invalid_value"),
        ({"type": "relu", "name": ""}, ".name", "invalid_value"),
        ({"type": "relu", "name": "a..b"}, ".name", "invalid_value"),
        ({"type": "relu", "name": ".a"}, ".name", "invalid_value"),
        ({"type": "Dropout", "p": 1.5}, ".p", "invalid_value"),
        ({"type": "Flatten", "start_dim": 0}, ".start_dim", "invalid_value"),
        ({"type": "MaxPool2d", "kernel_size": [2]}, ".kernel_size", "invalid_value"),
        ({"type": "MaxPool2d", "kernel_size": [2, 2, 2]}, ".kernel_size", "invalid_value"),
        ({"type": "MaxPool2d", "kernel_size": [2, True]}, ".kernel_size", "invalid_value"),
        ({"type": "MaxPool2d", "kernel_size": 0}, ".kernel_size", "invalid_value"),
        ({"type": "Unflatten", "dim": 1, "unflattened_size": []}, ".unflattened_size", "invalid_value"),
        ({"type": "LayerNorm", "normalized_shape": []}, ".normalized_shape", "invalid_value"),
        (
            {"type": "BatchNorm1d", "num_features": 2, "track_running_stats": False},
            ".track_running_stats",
            "invalid_value",
        ),
        ({**CONV, "type": "Conv2d", "in_channels": 3, "groups": 2}, "", "invalid_value"),
        ({**CONV, "type": "Conv1d", "out_channels": 3, "groups": 2}, "", "invalid_value"),
        ({**CONV, "type": "Conv2d", "padding": "same", "stride": 2}, "", "invalid_value"),
        ({**CONV, "type": "Conv1d", "padding": "same", "stride": 2}, "", "invalid_value"),
        ({"type": "GroupNorm", "num_groups": 3, "num_channels": 4}, "", "invalid_value"),
    ],
)
def test_a_wrong_layer_is_told_at_its_place_and_nowhere_else(layer: Any, place: str, code: str) -> None:
    assert problems(network({"type": "relu"}, layer)) == {f"network.layers[1]{place}": f"recipe.{code}"}


def nested(levels: int) -> dict[str, Any]:
    layer: dict[str, Any] = {"type": "relu"}
    for _ in range(levels):
        layer = {"type": "Residual", "layers": [layer]}
    return layer


def test_a_residual_holds_layers_of_any_type_and_reads_back_the_same() -> None:
    inside = [{"type": name, **arguments} for name, arguments in ONE_OF_EACH.items()]
    recipe = Recipe.from_document(network({"type": "RESIDUAL", "layers": [nested(7), *inside], "shortcut": inside}))
    assert isinstance(recipe.network, SequentialNetwork)
    (block,) = recipe.network.layers
    assert isinstance(block, Residual)
    assert [layer.torch_class for layer in block.layers] == ["Residual", *ONE_OF_EACH]
    assert block.shortcut is not None
    assert [layer.torch_class for layer in block.shortcut] == list(ONE_OF_EACH)
    assert Recipe.from_document(recipe.to_document()) == recipe


@pytest.mark.parametrize(
    ("layer", "place", "code"),
    [
        (nested(9), "", "invalid_value"),
        ({"type": "residual"}, ".layers", "missing_key"),
        ({"type": "residual", "layers": []}, ".layers", "invalid_value"),
        ({"type": "residual", "layers": [{"type": "relu"}], "shortcut": []}, ".shortcut", "invalid_value"),
        ({"type": "residual", "layers": [{"type": "relu"}], "short": 1}, ".short", "unknown_key"),
        ({"type": "residual", "layers": [{"type": "relu"}, {"type": "LSTM"}]}, ".layers[1]", "invalid_value"),
        ({"type": "residual", "layers": [nested(2), {"type": "Dropout", "p": 2}]}, ".layers[1].p", "invalid_value"),
        ({"type": "residual", "layers": [{"type": "relu", "name": "a"}] * 2}, "", "invalid_value"),
        (
            {"type": "residual", "layers": [{"type": "residual", "layers": [{"type": "relu", "inplace": True}]}]},
            ".layers[0].layers[0].inplace",
            "unknown_key",
        ),
    ],
)
def test_a_wrong_residual_is_told_at_its_place_and_nowhere_else(layer: dict[str, Any], place: str, code: str) -> None:
    assert problems(network({"type": "relu"}, layer)) == {f"network.layers[1]{place}": f"recipe.{code}"}


def test_layers_inside_residuals_count_as_layers() -> None:
    many = {"type": "residual", "layers": [{"type": "relu"}] * 5001}
    assert problems(network(many, many)) == {"network": "recipe.invalid_value"}


def test_a_mistyped_type_names_the_nearest() -> None:
    assert messages(network({"type": "Liner"})) == {
        "network.layers[0]": "there is no layer type 'liner'; did you mean 'linear'?"
    }


def test_a_wrong_pair_is_told_in_one_sentence() -> None:
    (message,) = messages(network({"type": "MaxPool2d", "kernel_size": "2"})).values()
    assert message == "must be a whole number, or must be a list; here '2'"


def test_two_layers_of_one_name_are_refused() -> None:
    linear = {"type": "Linear", "in_features": 2, "out_features": 2}
    assert problems(network({**linear, "name": "a"}, {**linear, "name": "a"})) == {"network": "recipe.invalid_value"}
    # "1" is what the second layer is called by its place.
    assert problems(network({**linear, "name": "1"}, linear)) == {"network": "recipe.invalid_value"}


def test_other_kinds_of_network_are_refused_with_what_there_is() -> None:
    assert problems(document(network={"kind": "graph"})) == {
        "network.kind": "recipe.invalid_value",
        "network.layers": "recipe.missing_key",
    }
    assert problems(document(network={"kind": "transformers", "architecture": "os.system"})) == {
        "network.architecture": "recipe.invalid_value"
    }
    (message,) = messages(document(network="sequential")).values()
    assert (
        message
        == "must be auto, or a mapping {kind: sequential, layers: […]} or {kind: transformers}; here 'sequential'"
    )
