"""A recipe of per-tensor methods needs no network and no data, and takes any architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cogram_core import fuse, fuse_modules
from cogram_core.errors import CheckpointError
from cogram_core.observer import SilentObserver, StageInfo
from tests.core.factories import mlp, points, random, read_output, save_state

NAMES = ["encoder.layers.0/attn:q", "ключ", "a b", "..", "x" * 300, "weight", "0.0.0"]


def odd_state(seed: int) -> dict[str, Tensor]:
    generator = random(seed)
    shapes = [(2, 3, 4), (5,), (), (0, 3), (1, 1, 2, 3), (2, 2), (3,)]
    state = {name: torch.randn(shape, generator=generator) for name, shape in zip(NAMES, shapes, strict=True)}
    state["half"] = torch.randn(4, generator=generator).half()
    state["brain"] = torch.randn(4, generator=generator).bfloat16()
    state["position_ids"] = torch.arange(6)
    state["steps"] = torch.tensor(seed)
    state["mask"] = torch.tensor([True, seed % 2 == 0])
    return state


def merge(tmp_path: Path, *states: dict[str, Tensor], **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    paths = [save_state(tmp_path / f"s{place}", state) for place, state in enumerate(states)]
    sources = [{"name": path.name, "checkpoint": str(path)} for path in paths]
    fusion = fuse({"sources": sources, "stages": [{"method": "linear"}], **options}, tmp_path / "out")
    return read_output(tmp_path / "out"), fusion.report


def test_tensors_of_any_name_shape_and_dtype_are_merged(tmp_path: Path) -> None:
    one, other = odd_state(1), odd_state(2)
    found, _ = merge(tmp_path, one, other)
    assert found.keys() == one.keys()
    for name, tensor in one.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        if tensor.is_floating_point():
            expected = ((tensor.double() + other[name].double()) / 2).float().to(tensor.dtype)
            assert torch.equal(found[name], expected), name


def test_integers_are_the_first_source_s_and_those_that_differ_are_listed(tmp_path: Path) -> None:
    one, other = odd_state(1), odd_state(2)
    found, report = merge(tmp_path, one, other)
    for name in ("position_ids", "steps", "mask"):
        assert torch.equal(found[name], one[name])
    assert report["integer_tensors"] == {"policy": "first", "differing": ["mask", "steps"]}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["integer_tensors"] == report["integer_tensors"]


def test_integers_keep_their_dtype_whatever_the_output_s_is(tmp_path: Path) -> None:
    found, _ = merge(tmp_path, odd_state(1), odd_state(3), output={"dtype": "bfloat16"})
    dtypes = {name: tensor.dtype for name, tensor in found.items()}
    assert dtypes["position_ids"] == torch.int64
    assert dtypes["mask"] == torch.bool
    assert {dtypes[name] for name in (*NAMES, "half", "brain")} == {torch.bfloat16}


def test_no_network_is_built_and_nothing_runs_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("no network is needed")

    monkeypatch.setattr(nn.Module, "__init__", forbidden)
    monkeypatch.setattr(nn.Module, "__call__", forbidden)
    _, report = merge(tmp_path, odd_state(1), odd_state(2))
    assert report["verdict"]["written"]["label"] == "linear: merged"
    assert report["verdict"]["candidates"] == []


def test_an_architecture_that_no_recipe_can_describe_is_merged_in_memory() -> None:
    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.ModuleDict(
            {"rnn": nn.LSTM(3, 4), "attention": nn.MultiheadAttention(4, 2), "table": nn.Embedding(9, 4)}
        )

    one, other = build(1), build(2)
    result = fuse_modules([one, other], stages=["linear"])
    for name, tensor in result.module.state_dict().items():
        mean = (one.state_dict()[name].double() + other.state_dict()[name].double()) / 2
        assert torch.equal(tensor, mean.float()), name
    assert len(result.trace) == len(one.state_dict())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_source_that_holds_no_numbers_is_refused_with_the_tensor_s_name(tmp_path: Path, bad: float) -> None:
    state = odd_state(2)
    state["a b"] = torch.tensor(bad)
    with pytest.raises(CheckpointError) as caught:
        merge(tmp_path, odd_state(1), state)
    assert [(problem.location, problem.code) for problem in caught.value.problems] == [
        ("s1: a b", "sources.not_finite")
    ]
    assert not (tmp_path / "out").exists()


class Stages(SilentObserver):
    """Hears which stages began and ended."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def stage_started(self, stage: StageInfo) -> None:
        self.heard.append(f"started {stage.method}")

    def stage_finished(self, stage: StageInfo) -> None:
        self.heard.append(f"finished {stage.method}")


@pytest.mark.parametrize("state", [{"steps": torch.tensor(3)}, {"w": torch.ones(2)}], ids=["integers alone", "floats"])
def test_every_stage_that_begins_also_ends(tmp_path: Path, state: dict[str, Tensor]) -> None:
    paths = [save_state(tmp_path / name, state) for name in ("a", "b")]
    sources = [{"name": path.name, "checkpoint": str(path)} for path in paths]
    observer = Stages()
    fuse({"sources": sources, "stages": [{"method": "linear"}]}, tmp_path / "out", observer=observer)
    assert observer.heard == ["started linear", "finished linear"]
    assert read_output(tmp_path / "out").keys() == state.keys()


def test_with_a_guard_the_same_method_gives_the_same_tensors() -> None:
    modules = [mlp(1), mlp(2)]
    plain = fuse_modules(modules, stages=["linear"]).module
    judged = fuse_modules(modules, stages=["linear"], data={"holdout": points(1)}, guard="report").module
    assert all(torch.equal(t, judged.state_dict()[n]) for n, t in plain.state_dict().items())
