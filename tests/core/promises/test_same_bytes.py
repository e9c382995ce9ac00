"""Promise 3: same recipe, same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cogram_core import fuse, fuse_modules
from cogram_core.determinism import repeatable
from tests.core.factories import (
    checkpoint_bytes,
    conv_net,
    points,
    read_output,
    recipe_document,
    save_data,
    specialists,
)

STAGES = ["fisher", {"method": "cogram", "granularity": "neuron", "prototypes": {"per_class": 4}}]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A recipe with every source of chance in it: k-means, its seeds, two stages, the guard."""
    return recipe_document(
        tmp_path_factory.mktemp("in"),
        specialists(6, 3),
        STAGES,
        evaluation=points(90, 200),
        holdout=points(91),
        seed=17,
    )


def fused(document: dict[str, Any], target: Path) -> dict[str, bytes]:
    fuse(document, target)
    return checkpoint_bytes(target)


def test_twice_in_one_process(document: dict[str, Any], tmp_path: Path) -> None:
    first = fused(document, tmp_path / "one")
    torch.manual_seed(99)
    torch.rand(3)
    assert fused(document, tmp_path / "two") == first


def test_the_resolved_recipe_gives_the_same_again(document: dict[str, Any], tmp_path: Path) -> None:
    first = fused(document, tmp_path / "one")
    fuse(tmp_path / "one" / "recipe.resolved.yaml", tmp_path / "two")
    assert checkpoint_bytes(tmp_path / "two") == first


def test_in_another_process_with_other_hashes_and_threads(document: dict[str, Any], tmp_path: Path) -> None:
    threads = "2" if os.environ.get("OMP_NUM_THREADS") == "1" else "1"
    first = fused(document, tmp_path / "one")
    code = "import json, sys; from cogram_core import fuse; fuse(json.loads(sys.argv[1]), sys.argv[2])"
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", code, json.dumps(document), str(tmp_path / "two")]
    subprocess.run(arguments, env=environment, check=True, timeout=100, cwd=tmp_path)
    assert checkpoint_bytes(tmp_path / "two") == first


def test_whatever_threads_and_precision_the_process_was_set_to(document: dict[str, Any], tmp_path: Path) -> None:
    first = fused(document, tmp_path / "one")
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        assert fused(document, tmp_path / "two") == first
        assert torch.get_num_threads() == 2
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def test_settings_are_put_back_after_an_error() -> None:
    threads = torch.get_num_threads()
    seen = []

    def fail() -> None:
        seen.append(torch.get_num_threads())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), repeatable(threads + 1, torch.device("cpu")):
        fail()
    assert seen == [threads + 1]
    assert torch.get_num_threads() == threads


def test_another_seed_draws_other_prototypes(document: dict[str, Any], tmp_path: Path) -> None:
    first = fused(
        {**document, "guard": "off", "data": {"evaluation": document["data"]["evaluation"]}}, tmp_path / "one"
    )
    other = {**document, "guard": "off", "data": {"evaluation": document["data"]["evaluation"]}, "seed": 18}
    assert fused(other, tmp_path / "two") != first


@pytest.mark.parametrize("guard", ["best_on_holdout", "report", "off"])
def test_networks_in_memory_give_the_tensors_of_files(tmp_path: Path, guard: str) -> None:
    shape, classes = (1, 4, 4), 3
    modules = specialists(8, 2, conv_net)
    data = {"evaluation": points(90, 40, shape, classes)}
    if guard != "off":
        data["holdout"] = points(91, 40, shape, classes)
    written = recipe_document(tmp_path / "in", modules, STAGES, guard=guard, seed=5)
    for name, pair in data.items():
        written["data"][name] = str(save_data(tmp_path / f"{name}.safetensors", pair))
    fusion = fuse(written, tmp_path / "out")
    result = fuse_modules(modules, stages=STAGES, data=data, guard=guard, seed=5)
    found = read_output(tmp_path / "out")
    assert found.keys() == result.module.state_dict().keys()
    for name, tensor in result.module.state_dict().items():
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    assert result.trace.metadata["verdict"] == fusion.verdict
