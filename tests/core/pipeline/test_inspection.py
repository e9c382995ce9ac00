from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import cogram_core
from cogram_core.errors import CheckpointError, NetworkError, ReplayError
from tests.core.factories import conv_net, mlp, save_checkpoint, save_state
from tests.core.pipeline.recording import document


def test_a_checkpoint_is_told_with_its_tensors_and_its_network(tmp_path: Path) -> None:
    found = cogram_core.inspect(save_checkpoint(tmp_path / "a", conv_net(0)))
    assert found["kind"] == "checkpoint"
    assert found["files"] == ["model.safetensors"]
    assert (found["network"], found["network_obstacle"]) == ("sequential", None)
    assert [layer["type"] for layer in found["layers"]] == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Linear"]
    assert [layer["name"] for layer in found["layers"]] == ["0", "1", "2", "3", "4"]
    state = conv_net(0).state_dict()
    assert {tensor["name"]: tuple(tensor["shape"]) for tensor in found["tensors"]} == {
        name: tuple(tensor.shape) for name, tensor in state.items()
    }
    assert found["parameters"] == sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point())
    assert found["bytes"] == sum(tensor.nbytes for tensor in state.values())
    assert found["dtypes"] == ["F32", "I64"]
    assert json.loads(json.dumps(found)) == found


def test_a_single_file_and_what_can_not_be_inferred_are_told_too(tmp_path: Path) -> None:
    folder = save_state(tmp_path / "a", {"conv.weight": torch.zeros(1, 1, 3, 3)})
    found = cogram_core.inspect(folder / "model.safetensors")
    assert (found["network"], found["layers"]) == (None, [])
    assert "conv" in found["network_obstacle"]


def test_a_trace_is_told_with_its_verdict_and_layers(tmp_path: Path) -> None:
    fusion = cogram_core.fuse(document(tmp_path / "inputs"), tmp_path / "out")
    found = cogram_core.inspect(fusion.output / "trace.parquet")
    assert found["kind"] == "trace"
    for key in ("decisions", "layers", "sources", "verdict"):
        assert found[key] == fusion.report[key]


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        cogram_core.inspect(tmp_path / "nowhere")
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(ReplayError):
        cogram_core.inspect(tmp_path / "a.parquet")
    folder = save_checkpoint(tmp_path / "b", mlp(0))
    (folder / "network.json").write_text("{}")
    with pytest.raises(NetworkError):
        cogram_core.inspect(folder)
