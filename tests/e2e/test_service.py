"""The main job through the real service: upload, submit, follow, fetch; and what becomes of bad input."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import cogram_core
from app.client import Client, ServiceProblem
from tests import nursery
from tests.e2e.inputs import Inputs
from tests.e2e.served import Served, until


def upload(client: Client, inputs: Inputs) -> None:
    """Everything that the recipe names."""
    for name in ("a", "b"):
        client.upload_checkpoint(name, inputs.path(name).parent)
    for name in ("evaluation", "holdout"):
        client.upload_dataset(name, inputs.path(name))


def local_sha256(inputs: Inputs, recipe: dict[str, Any], folder: Path) -> str:
    """What the core makes of the recipe with no service around it."""
    cogram_core.fuse(recipe, folder, inputs=inputs.local(recipe))
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def remote_sha256(client: Client, fusion_id: str) -> str:
    """What the service made of it."""
    [model] = [entry for entry in client.artifacts(fusion_id) if entry["path"] == "model.safetensors"]
    return str(model["sha256"])


def test_a_fusion_through_the_service_gives_the_same_bytes_as_on_this_machine(
    client: Client, small_inputs: Inputs, tmp_path: Path
) -> None:
    upload(client, small_inputs)
    recipe = small_inputs.recipe()
    assert client.validate(recipe)["ok"]
    fusion_id = client.submit(recipe)["id"]
    events = list(client.follow(fusion_id))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["queued", "started"]
    assert kinds[-1] == "succeeded"
    assert [event.data["method"] for event in events if event.type == "stage_finished"] == [
        "fisher",
        "cogram",
        "cogram",
    ]

    fusion = client.fusion(fusion_id)
    assert (fusion["state"], fusion["attempt"]) == ("succeeded", 1)
    paths = client.download(fusion_id, tmp_path / "fetched")
    assert {"model.safetensors", "recipe.resolved.yaml", "trace.parquet", "report.json", "SHA256SUMS"} <= {
        path.name for path in paths
    }
    tensors = load_file(tmp_path / "fetched" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert remote_sha256(client, fusion_id) == local_sha256(small_inputs, recipe, tmp_path / "local")

    report = json.loads((tmp_path / "fetched" / "report.json").read_text())
    assert report["verdict"]["written"] == fusion["verdict"]["written"]
    decisions = list(client.trace(fusion_id))
    assert [decision["seq"] for decision in decisions] == list(range(len(decisions)))
    layers = client.trace_summary(fusion_id)
    assert sum(layer["visits"] for layer in layers) == len(decisions)
    assert {share["source"] for layer in layers for share in layer["shares"]} == {"a", "b"}


def test_training_through_the_service_gives_the_same_bytes_as_on_this_machine(
    client: Client, small_inputs: Inputs, tmp_path: Path
) -> None:
    upload(client, small_inputs)
    recipe = small_inputs.recipe(
        stages=[{"method": "linear"}, {"method": "finetune", "kickoff_epochs": 1, "epochs": 1}]
    )
    problems = client.validate(recipe)["errors"]
    assert [(problem["location"], problem["code"]) for problem in problems] == [
        ("data.training", "recipe.missing_training")
    ]
    recipe["data"] = recipe["data"] | {"training": "evaluation"}
    fusion_id = client.submit(recipe)["id"]
    assert client.wait(fusion_id, 60)["state"] == "succeeded"
    assert remote_sha256(client, fusion_id) == local_sha256(small_inputs, recipe, tmp_path / "local")
    assert {layer["trained"] for layer in client.trace_summary(fusion_id)} == {2}
    assert [row["action"] for row in client.trace(fusion_id)][-1] == "trained"


def test_a_base_goes_through_the_service_and_stays_while_a_fusion_uses_it(
    served: Served, client: Client, small_inputs: Inputs, tmp_path: Path
) -> None:
    upload(client, small_inputs)
    start = tmp_path / "start" / "model.safetensors"
    start.parent.mkdir()
    one, other = (load_file(small_inputs.path(name)) for name in ("a", "b"))
    save_file({name: (tensor + other[name]) / 4 for name, tensor in one.items()}, start)
    stages = [{"method": "adamerging", "steps": 5}, {"method": "opcm", "alpha": 0.2}]
    recipe = small_inputs.recipe(base="start", stages=stages, guard="report")
    assert [problem["location"] for problem in client.validate(recipe)["errors"]] == ["base"]
    base = client.upload_checkpoint("start", start.parent)["id"]
    fusion_id = client.submit(recipe)["id"]
    refused = httpx.delete(f"{served.address}/v1/checkpoints/{base}")
    assert (refused.status_code, refused.json()["code"]) == (409, "checkpoint.in_use")
    assert client.wait(fusion_id, 60)["state"] == "succeeded"

    here = small_inputs.local(recipe) | {"start": start}
    cogram_core.fuse(recipe, tmp_path / "local", inputs=here)
    fused = (tmp_path / "local" / "model.safetensors").read_bytes()
    assert remote_sha256(client, fusion_id) == hashlib.sha256(fused).hexdigest()
    client.download(fusion_id, tmp_path / "fetched")
    sources = [word for name in ("a", "b") for word in ("--sources", here[name])]
    trace = tmp_path / "fetched" / "trace.parquet"
    _cogram("replay", trace, *sources, "--base", start, "-o", tmp_path / "replayed")
    assert (tmp_path / "replayed" / "model.safetensors").read_bytes() == fused


def test_the_command_line_gives_the_same_bytes_and_replays_them(
    client: Client, small_inputs: Inputs, tmp_path: Path
) -> None:
    upload(client, small_inputs)
    recipe = small_inputs.recipe()
    fusion_id = client.submit(recipe)["id"]
    here = small_inputs.local(recipe)
    recipe["sources"] = [source | {"checkpoint": str(here[source["checkpoint"]])} for source in recipe["sources"]]
    recipe["data"] = {key: str(here[name]) for key, name in recipe["data"].items()}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    _cogram("fuse", tmp_path / "recipe.yaml", "-o", tmp_path / "fused")
    sources = [word for source in recipe["sources"] for word in ("--sources", source["checkpoint"])]
    _cogram("replay", tmp_path / "fused" / "trace.parquet", *sources, "-o", tmp_path / "replayed")
    fused, replayed = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("fused", "replayed"))
    assert fused == replayed
    assert client.wait(fusion_id, 60)["state"] == "succeeded"
    assert remote_sha256(client, fusion_id) == hashlib.sha256(fused).hexdigest()


def test_a_running_fusion_is_cancelled_within_two_seconds_and_leaves_no_work_folder(
    served: Served, client: Client, long_inputs: Inputs
) -> None:
    upload(client, long_inputs)
    fusion_id = client.submit(long_inputs.long_recipe())["id"]
    until(lambda: client.fusion(fusion_id)["progress"])
    asked = time.monotonic()
    client.cancel(fusion_id)
    fusion = client.wait(fusion_id, 10)
    assert time.monotonic() - asked < 2
    assert fusion["state"] == "cancelled"
    until(lambda: not list((served.folder / "work").glob("*")), timeout=2)
    kinds = [event.type for event in client.follow(fusion_id)]
    assert "cancelling" in kinds
    assert kinds[-1] == "cancelled"


def test_nan_weights_end_in_one_error_that_names_source_and_tensor(
    served: Served, client: Client, small_inputs: Inputs, tmp_path: Path
) -> None:
    upload(client, small_inputs)
    tensors = load_file(small_inputs.path("b"))
    tensors["fc2.bias"][1] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors")
    client.upload_checkpoint("b", tmp_path / "model.safetensors")
    blobs = len(list((served.folder / "blobs" / "sha256").glob("*/*")))
    fusion_id = client.submit(small_inputs.recipe())["id"]
    fusion = client.wait(fusion_id, 60)
    assert fusion["state"] == "failed"
    told = json.dumps(fusion["error"])
    assert "fc2.bias" in told
    assert "b" in {source["name"] for source in fusion["recipe"]["sources"]}
    with pytest.raises(ServiceProblem, match="no_result"):
        client.artifacts(fusion_id)
    assert len(list((served.folder / "blobs" / "sha256").glob("*/*"))) == blobs
    assert list((served.folder / "work").glob("*")) == []


def test_bad_recipes_are_refused_with_place_and_remedy_and_nothing_is_queued(
    client: Client, small_inputs: Inputs, long_inputs: Inputs, tmp_path: Path
) -> None:
    upload(client, small_inputs)
    client.upload_checkpoint("larger", long_inputs.path("b"))
    data = load_file(small_inputs.path("evaluation"))
    save_file({**data, "targets": data["targets"] + 1}, tmp_path / "shifted.safetensors")
    client.upload_dataset("shifted", tmp_path / "shifted.safetensors")
    recipe = small_inputs.recipe()
    sources, data_names = recipe["sources"], recipe["data"]
    queued = len(_fusions(client))
    for change, location in [
        ({"sources": sources[:1]}, "sources"),
        ({"sources": [sources[0], {"name": "b", "checkpoint": "larger"}]}, "fc1.weight"),
        ({"stages": [{"method": "cogramm"}]}, "stages[0].method"),
        ({"stages": [{"method": "cogram", "tau_min": 2.0, "tau_max": 1.0}]}, "stages[0].tau_min"),
        ({"sede": 1}, "sede"),
        ({"data": {"evaluation": "evaluation"}}, "data.holdout"),
        ({"data": data_names | {"evaluation": "shifted"}}, "data.evaluation"),
    ]:
        with pytest.raises(ServiceProblem) as refused:
            client.submit(recipe | change)
        assert refused.value.status == 422
        found = [error for error in refused.value.errors if location in error["location"]]
        assert len(found) == 1, refused.value
        assert len(found[0]["message"]) > 10
    assert len(_fusions(client)) == queued


def _fusions(client: Client) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client._json("GET", "/fusions")["items"]
    return items


def _cogram(*words: object) -> None:
    code, _, err = nursery.run("app.cli", *map(str, words))
    assert code == 0, err
