from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open

import cogram_core
from cogram_core.methods.cogram.params import LevelSweeps
from cogram_core.recipe import Recipe
from cogram_core.trace import Trace
from tests.core.factories import checkpoint_bytes, mlp, points, read_output, save_data, save_state
from tests.core.pipeline.recording import document, entries

FILES = ["SHA256SUMS", "model.safetensors", "network.json", "recipe.resolved.yaml", "report.json", "trace.parquet"]


def linear(folder: Path, **changes: Any) -> dict[str, Any]:
    return document(folder, stages=[{"method": "linear"}], guard="off", data={}) | changes


def test_the_folder_holds_what_was_promised_and_nothing_else(tmp_path: Path) -> None:
    fusion = cogram_core.fuse(document(tmp_path / "inputs"), tmp_path / "outputs" / "out")
    assert entries(tmp_path / "outputs") == ["out"]
    assert entries(fusion.output) == FILES


def test_the_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    fusion = cogram_core.fuse(document(tmp_path / "inputs"), tmp_path / "out")
    result = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=fusion.output, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert sorted(line.partition(":")[0] for line in result.stdout.splitlines()) == FILES[1:]


def test_the_resolved_recipe_fuses_again_to_the_same_bytes(tmp_path: Path) -> None:
    first = cogram_core.fuse(document(tmp_path / "inputs"), tmp_path / "first")
    again = cogram_core.fuse(first.output / "recipe.resolved.yaml", tmp_path / "again")
    assert checkpoint_bytes(again.output) == checkpoint_bytes(first.output)
    resolved = yaml.safe_load((first.output / "recipe.resolved.yaml").read_text())
    assert (resolved["device"], resolved["threads"]) == ("cuda" if torch.cuda.is_available() else "cpu", 1)
    assert resolved["network"]["kind"] == "sequential"
    assert resolved["stages"][1]["max_sweeps"] == {**LevelSweeps().model_dump(), "layer": 1}
    assert Recipe.load(first.output / "recipe.resolved.yaml") == Recipe.load(again.output / "recipe.resolved.yaml")


def test_the_report_on_disk_is_the_one_that_is_returned(tmp_path: Path) -> None:
    fusion = cogram_core.fuse(document(tmp_path / "inputs"), tmp_path / "out")
    report = json.loads((fusion.output / "report.json").read_text())
    assert report == json.loads(json.dumps(fusion.report))
    assert report["verdict"] == json.loads(json.dumps(fusion.verdict))
    assert report["recipe"] == yaml.safe_load((fusion.output / "recipe.resolved.yaml").read_text())
    assert [source["name"] for source in report["sources"]] == ["module-0", "module-1"]
    trace = Trace(fusion.output / "trace.parquet")
    assert sum(report["decisions"].values()) == len(trace)
    assert sum(layer["visits"] for layer in report["layers"]) == len(trace)
    assert trace.metadata["sources"] == report["sources"]
    assert trace.metadata["verdict"] == report["verdict"]
    labels = [candidate["label"] for candidate in report["verdict"]["candidates"]]
    assert labels == ["module-0", "module-1", "plain average", "fisher: merged", "cogram: sweep 0"]
    assert report["environment"]["threads"] == 1
    assert report["seconds"] > 0


def test_configuration_and_tokenizer_are_carried_over_from_the_first_source(tmp_path: Path) -> None:
    given = linear(tmp_path / "inputs")
    for place in (0, 1):
        source = tmp_path / "inputs" / f"source-{place}"
        (source / "config.json").write_text(f'{{"place": {place}}}')
        (source / "tokenizer.json").write_text("{}")
        (source / "secret.txt").write_text("stays")
        (source / "vocab.txt").mkdir()
    out = cogram_core.fuse(given, tmp_path / "out").output
    assert entries(out) == sorted([*FILES, "config.json", "tokenizer.json"])
    assert json.loads((out / "config.json").read_text()) == {"place": 0}
    assert (out / "network.json").read_bytes() == (tmp_path / "inputs" / "source-0" / "network.json").read_bytes()


def test_shards_keep_their_limit_and_hold_the_same_tensors(tmp_path: Path) -> None:
    given = linear(tmp_path / "inputs")
    whole = cogram_core.fuse(given, tmp_path / "whole").output
    cut = cogram_core.fuse(given | {"output": {"max_shard_bytes": "200B"}}, tmp_path / "cut").output
    shards = sorted(cut.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert not (cut / "model.safetensors").exists()
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    expected = read_output(whole)
    found = read_output(cut)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_the_output_has_the_dtype_that_was_asked_for(tmp_path: Path, dtype: str) -> None:
    out = cogram_core.fuse(linear(tmp_path / "inputs", output={"dtype": dtype}), tmp_path / "out").output
    assert {tensor.dtype for tensor in read_output(out).values()} == {getattr(torch, dtype)}


def test_without_a_wish_every_tensor_keeps_its_dtype_and_integers_are_the_first_sources(tmp_path: Path) -> None:
    state = {"w": torch.tensor([1.0, 2.0], dtype=torch.float16), "f": torch.tensor([1.0]), "n": torch.tensor(3)}
    for place in (0, 1):
        save_state(tmp_path / str(place), {**state, "n": state["n"] + place, "flag": torch.tensor([True])})
    sources = [{"name": f"s{place}", "checkpoint": str(tmp_path / str(place))} for place in (0, 1)]
    fusion = cogram_core.fuse({"sources": sources, "method": "linear"}, tmp_path / "out")
    found = read_output(fusion.output)
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "w": torch.float16,
        "f": torch.float32,
        "n": torch.int64,
        "flag": torch.bool,
    }
    assert found["n"] == 3
    assert fusion.report["integer_tensors"] == {"policy": "first", "differing": ["n"]}


def test_a_checkpoint_of_integers_alone_is_copied_and_its_stage_ends(tmp_path: Path) -> None:
    for place in (0, 1):
        save_state(tmp_path / str(place), {"n": torch.tensor([1, 2])})
    sources = [{"name": f"s{place}", "checkpoint": str(tmp_path / str(place))} for place in (0, 1)]
    fusion = cogram_core.fuse({"sources": sources, "method": "linear"}, tmp_path / "out")
    assert read_output(fusion.output)["n"].tolist() == [1, 2]


def test_the_file_says_that_it_is_for_torch(tmp_path: Path) -> None:
    out = cogram_core.fuse(linear(tmp_path / "inputs"), tmp_path / "out").output
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_references_that_are_names_are_found_through_the_inputs(tmp_path: Path) -> None:
    given = document(tmp_path / "inputs")
    direct = cogram_core.fuse(given, tmp_path / "direct").output
    inputs: dict[str, Path] = {}
    for place, source in enumerate(given["sources"]):
        inputs[f"ckpt_{place}"] = Path(source["checkpoint"])
        source["checkpoint"] = f"ckpt_{place}"
    for name, path in given["data"].items():
        inputs[f"data_{name}"] = Path(path)
        given["data"][name] = f"data_{name}"
    by_name = cogram_core.fuse(given, tmp_path / "by-name", inputs=inputs).output
    assert checkpoint_bytes(by_name) == checkpoint_bytes(direct)


def test_the_sources_own_data_is_used_instead_of_the_evaluation_data(tmp_path: Path) -> None:
    given = document(tmp_path / "inputs", stages=[{"method": "fisher"}])
    shared = cogram_core.fuse(given, tmp_path / "shared")
    data = str(save_data(tmp_path / "own.safetensors", points(9, 20)))
    for source in given["sources"]:
        source["data"] = data
    own = cogram_core.fuse(given | {"guard": "report"}, tmp_path / "own")
    plain = cogram_core.fuse(given | {"guard": "off", "data": {"evaluation": data}}, tmp_path / "plain")
    assert checkpoint_bytes(own.output) == checkpoint_bytes(plain.output)
    assert shared.verdict["candidates"][-1] != own.verdict["candidates"][-1]


def test_the_inputs_are_left_as_they_were(tmp_path: Path) -> None:
    given = document(tmp_path / "inputs")
    before = {path: path.read_bytes() for path in (tmp_path / "inputs").rglob("*") if path.is_file()}
    cogram_core.fuse(given, tmp_path / "out")
    assert {path: path.read_bytes() for path in (tmp_path / "inputs").rglob("*") if path.is_file()} == before


def test_threads_and_determinism_are_put_back(tmp_path: Path) -> None:
    before = (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    cogram_core.fuse(document(tmp_path / "inputs") | {"threads": 2}, tmp_path / "out")
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_a_module_in_memory_and_its_checkpoint_fuse_to_the_same_numbers(tmp_path: Path) -> None:
    modules = [mlp(1), mlp(2)]
    fused = cogram_core.fuse_modules(modules, stages=["linear"], guard="off")
    for place, module in enumerate(modules):
        save_state(tmp_path / str(place), module.state_dict())
    sources = [{"name": f"module-{place}", "checkpoint": str(tmp_path / str(place))} for place in (0, 1)]
    out = cogram_core.fuse({"sources": sources, "method": "linear"}, tmp_path / "out").output
    expected = read_output(out)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in fused.module.state_dict().items())


def test_the_output_says_how_its_network_runs_and_can_be_a_source_again(tmp_path: Path) -> None:
    given = document(tmp_path / "inputs")
    described = json.loads((tmp_path / "inputs" / "source-0" / "network.json").read_text())
    (tmp_path / "inputs" / "source-0" / "network.json").write_text(
        '{"kind": "sequential", "layers": [{"type": "relu"}]}'
    )
    first = cogram_core.fuse(given | {"network": described}, tmp_path / "first").output
    (tmp_path / "inputs" / "source-0" / "network.json").write_text((first / "network.json").read_text())
    again = cogram_core.fuse(given, tmp_path / "again").output
    assert checkpoint_bytes(again) == checkpoint_bytes(first)
