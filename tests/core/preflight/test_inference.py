from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cogram_core.errors import NetworkError
from cogram_core.preflight import summarise_checkpoint
from cogram_core.preflight.summaries import CheckpointSummary
from cogram_core.recipe import SequentialNetwork
from cogram_core.recipe.layers import expected_tensors, named_layers
from tests.core.factories import conv_net, mlp, save_checkpoint, save_state


def summary(folder: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> CheckpointSummary:
    state = {name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
    return summarise_checkpoint(save_state(folder / "checkpoint", state))


def chain(*names: str, width: int = 3) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{tensor}": shape for name in names for tensor, shape in _linear(width).items()}


def _linear(width: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (width, width), "bias": (width,)}


def names_of(found: CheckpointSummary) -> list[tuple[str, str]]:
    return [(name, layer.torch_class) for name, layer in named_layers(found.layers or ())]


def test_a_chain_of_linear_layers_is_inferred_with_relu_between(tmp_path: Path) -> None:
    found = summary(tmp_path, {"0.weight": (5, 4), "0.bias": (5,), "2.weight": (3, 5)})
    assert names_of(found) == [("0", "Linear"), ("relu0", "ReLU"), ("2", "Linear")]
    assert found.layers is not None
    assert expected_tensors(found.layers) == {name: spec.shape for name, spec in found.header.tensors.items()}
    assert (found.described, found.obstacle, found.network_kind) == (False, "", "sequential")


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    found = summary(tmp_path, chain("fc10", "fc2", "fc1"))
    assert [name for name, kind in names_of(found) if kind == "Linear"] == ["fc1", "fc2", "fc10"]
    nested = summary(tmp_path / "nested", chain("body.10.fc", "body.9.fc", "head"))
    assert [name for name, kind in names_of(nested) if kind == "Linear"] == ["body.9.fc", "body.10.fc", "head"]


def test_odd_names_are_names_like_others(tmp_path: Path) -> None:
    odd = ["/up", "a b", "relu0", "relu1.fc", "schön", "x" * 500]
    found = summary(tmp_path, chain(*odd))
    names = [name for name, _ in named_layers(found.layers or ())]
    assert len(set(names)) == len(names) == 2 * len(odd) - 1
    assert set(odd) <= set(names)
    layers = found.layers
    assert layers is not None
    assert SequentialNetwork(kind="sequential", layers=layers).layers == layers


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"a.weight": (5, 4), "b.weight": (3, 6)}, "'a' gives 5 values but 'b' takes 6"),
        ({"conv.weight": (2, 1, 3, 3), "conv.bias": (2,)}, "module 'conv' has a weight of shape [2, 1, 3, 3]"),
        ({"norm.weight": (2,), "norm.bias": (2,)}, "module 'norm' has a weight of shape [2]"),
        ({"a.weight": (2, 2), "a.running_mean": (2,)}, "module 'a' has the tensors 'running_mean', 'weight'"),
        ({"a.weight": (2, 2), "a.bias": (3,)}, "module 'a' has a weight of shape [2, 2] and a bias of shape [3]"),
        ({"a.bias": (2,)}, "module 'a' has the tensors 'bias'"),
        ({"weight": (2, 2), "bias": (2,)}, "the tensor names bias, weight don't say which module"),
        ({"a.weight": (0, 2)}, "shape [0, 2]"),
        ({"a.weight": ()}, "shape []"),
        ({"a..weight": (2, 2)}, "don't say which module"),
    ],
)
def test_what_can_not_be_inferred_is_said_precisely(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], words: str
) -> None:
    found = summary(tmp_path, shapes)
    assert found.layers is None
    assert found.network_kind is None
    assert words in found.obstacle
    assert found.obstacle.endswith("network: {kind: sequential, layers: […]}")


def test_integers_are_no_weights(tmp_path: Path) -> None:
    assert "integers" in summary(tmp_path, {"a.weight": (2, 2)}, torch.int64).obstacle


def test_a_weight_larger_than_any_layer_is_not_inferred(tmp_path: Path) -> None:
    found = summary(tmp_path, {"a.weight": (2**24 + 1, 1)}, torch.float8_e4m3fn)
    assert found.layers is None


def test_network_json_is_taken_at_its_word(tmp_path: Path) -> None:
    found = summarise_checkpoint(save_checkpoint(tmp_path / "a", conv_net(0)))
    assert [kind for _, kind in names_of(found)] == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Linear"]
    assert found.described


def test_network_json_stands_among_files_given_by_name(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "a", conv_net(0))
    files = {"model.safetensors": folder / "model.safetensors", "network.json": folder / "network.json"}
    assert summarise_checkpoint(files).described


def test_a_config_alone_says_nothing_of_the_network(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "a", mlp(0))
    (folder / "network.json").unlink()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    found = summarise_checkpoint(folder)
    assert not found.described
    assert found.network_kind == "sequential"


def layers_json(*layers: Any) -> str:
    return json.dumps({"kind": "sequential", "layers": list(layers)})


@pytest.mark.parametrize(
    ("content", "location", "code"),
    [
        (b"{", "network.json:1:2", "network.syntax"),
        (b"", "network.json", "network.syntax"),
        (b"[]", "network.json", "network.syntax"),
        (b"\xff", "network.json", "network.unreadable"),
        (b'{"kind": "sequential", "kind": "sequential"}', "network.json", "network.syntax"),
        (b'{"a":' * 5000, "network.json", "network.syntax"),
        (b"{}", "network.json: kind", "network.missing_key"),
        (layers_json().encode(), "network.json: layers", "network.invalid_value"),
        (layers_json({"type": "Liner"}).encode(), "network.json: layers[0]", "network.invalid_value"),
        (layers_json({"type": "Dropout", "p": 2}).encode(), "network.json: layers[0].p", "network.invalid_value"),
        (layers_json({"type": "Dropout", "p": float("nan")}).encode(), "network.json: layers[0].p", "network.invalid_value"),
        (layers_json({"type": "relu", "q": 2}).encode(), "network.json: layers[0].q", "network.unknown_key"),
        (b" " * (2**20 + 1), "network.json", "network.invalid"),
    ],
)  # fmt: skip
def test_a_broken_network_json_is_told_by_its_place(tmp_path: Path, content: bytes, location: str, code: str) -> None:
    folder = save_checkpoint(tmp_path / "a", mlp(0))
    (folder / "network.json").write_bytes(content)
    with pytest.raises(NetworkError) as caught:
        summarise_checkpoint(folder)
    found = {problem.location: problem.code for problem in caught.value.problems}
    assert found[location] == code
