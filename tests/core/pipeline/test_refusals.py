from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cogram_core
from cogram_core.errors import CogramError, InvalidInput, OutputError, RecipeError
from tests.core.pipeline.recording import document, entries

Spoil = Callable[[Path, dict[str, Any]], None]


def spoil_tensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], None], source: int = 1) -> None:
    file = folder / f"source-{source}" / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file)


def spoil_data(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / f"{name}.safetensors")
    change(state)
    save_file(state, folder / f"{name}.safetensors")


def nan_in(state: dict[str, torch.Tensor], *names: str) -> None:
    for name in names:
        state[name].view(-1)[-1] = float("nan")


def every_source_has_nan(folder: Path, given: dict[str, Any]) -> None:
    spoil_tensor(folder, lambda state: nan_in(state, "0.weight"), source=0)
    spoil_tensor(folder, lambda state: nan_in(state, "2.bias", "4.weight"), source=1)


def a_missing_key(folder: Path, given: dict[str, Any]) -> None:
    spoil_tensor(folder, lambda state: state.__delitem__("2.bias"))


def another_shape(folder: Path, given: dict[str, Any]) -> None:
    spoil_tensor(folder, lambda state: state.update({"2.bias": torch.zeros(6)}))


def another_dtype(folder: Path, given: dict[str, Any]) -> None:
    spoil_tensor(folder, lambda state: state.update({"2.bias": state["2.bias"].half()}))


def one_source(folder: Path, given: dict[str, Any]) -> None:
    given["sources"].pop()


def a_typo(folder: Path, given: dict[str, Any]) -> None:
    given["stages"][1]["granularty"] = "layer"


def an_unknown_method(folder: Path, given: dict[str, Any]) -> None:
    given["stages"][0]["method"] = "fischer"


def crossed_thresholds(folder: Path, given: dict[str, Any]) -> None:
    given["stages"][1] |= {"tau_min": 0.5, "tau_max": 0.1}


def no_holdout(folder: Path, given: dict[str, Any]) -> None:
    del given["data"]["holdout"]


def no_training(folder: Path, given: dict[str, Any]) -> None:
    given["stages"].append({"method": "finetune"})


def training_on_holdout(folder: Path, given: dict[str, Any]) -> None:
    no_training(folder, given)
    given["data"]["training"] = given["data"]["holdout"]


def training_on_a_copy_of_holdout(folder: Path, given: dict[str, Any]) -> None:
    no_training(folder, given)
    given["data"]["training"] = str(shutil.copyfile(given["data"]["holdout"], folder / "copy.safetensors"))


def evaluating_on_a_part_of_holdout_in_another_order(folder: Path, given: dict[str, Any]) -> None:
    seen = load_file(given["data"]["holdout"])
    order = torch.randperm(len(seen["targets"]))[: len(seen["targets"]) // 2 + 1]
    save_file({name: tensor[order] for name, tensor in seen.items()}, folder / "part.safetensors")
    given["data"]["evaluation"] = str(folder / "part.safetensors")


def statistics_on_holdout(folder: Path, given: dict[str, Any]) -> None:
    given["sources"][1]["data"] = given["data"]["holdout"]


def statistics_on_a_copy_of_holdout(folder: Path, given: dict[str, Any]) -> None:
    given["sources"][1]["data"] = str(shutil.copyfile(given["data"]["holdout"], folder / "copy.safetensors"))


def targets_outside(folder: Path, given: dict[str, Any]) -> None:
    spoil_data(folder, "evaluation", lambda state: state["targets"].fill_(4))
    spoil_data(folder, "holdout", lambda state: state["targets"].fill_(-1))


def nan_in_data(folder: Path, given: dict[str, Any]) -> None:
    for name in ("evaluation", "holdout"):
        spoil_data(folder, name, lambda state: nan_in(state, "inputs"))


def no_inputs(folder: Path, given: dict[str, Any]) -> None:
    spoil_data(folder, "holdout", lambda state: state.__delitem__("inputs"))


def data_of_another_width(folder: Path, given: dict[str, Any]) -> None:
    spoil_data(folder, "holdout", lambda state: state.update(inputs=torch.zeros(20, 7)))


def missing_files(folder: Path, given: dict[str, Any]) -> None:
    given["sources"][0]["checkpoint"] = str(folder / "nowhere")
    given["data"]["evaluation"] = str(folder / "nothing.safetensors")


def a_pickle(folder: Path, given: dict[str, Any]) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "model.pt")
    given["sources"][1]["checkpoint"] = str(folder / "model.pt")


def a_folder_of_pickles(folder: Path, given: dict[str, Any]) -> None:
    (folder / "source-1" / "model.safetensors").rename(folder / "source-1" / "pytorch_model.bin")


def a_cut_checkpoint(folder: Path, given: dict[str, Any]) -> None:
    file = folder / "source-1" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def a_broken_network(folder: Path, given: dict[str, Any]) -> None:
    (folder / "source-0" / "network.json").write_text(json.dumps({"kind": "sequential", "layers": [{"type": "Liner"}]}))


def an_unusable_path(folder: Path, given: dict[str, Any]) -> None:
    given["sources"][0]["checkpoint"] = "x" * 5000


def a_network_that_can_not_run(folder: Path, given: dict[str, Any]) -> None:
    described = json.loads((folder / "source-0" / "network.json").read_text())["layers"]
    layers = [*described, {"type": "Unflatten", "dim": 1, "unflattened_size": [3, 5]}]
    given["network"] = {"kind": "sequential", "layers": layers}


def a_network_that_is_no_classifier(folder: Path, given: dict[str, Any]) -> None:
    described = json.loads((folder / "source-0" / "network.json").read_text())["layers"]
    layers = [*described, {"type": "Unflatten", "dim": 1, "unflattened_size": [2, 2]}]
    given["network"] = {"kind": "sequential", "layers": layers}


def a_device_that_is_not_there(folder: Path, given: dict[str, Any]) -> None:
    given["device"] = "cuda:99"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (a_missing_key, {"module-1: 2.bias": "sources.missing_tensor"}),
        (another_shape, {"module-1: 2.bias": "sources.shape_mismatch"}),
        (another_dtype, {"module-1: 2.bias": "sources.dtype_mismatch"}),
        (one_source, {"sources": "recipe.too_few_sources"}),
        (a_typo, {"stages[1].granularty": "recipe.unknown_key"}),
        (an_unknown_method, {"stages[0].method": "recipe.unknown_method"}),
        (crossed_thresholds, {"stages[1].tau_min": "recipe.wrong_order"}),
        (no_holdout, {"data.holdout": "recipe.missing_holdout"}),
        (no_training, {"data.training": "recipe.missing_training"}),
        (training_on_holdout, {"data.holdout": "recipe.same_data"}),
        (training_on_a_copy_of_holdout, {"data.holdout": "recipe.same_data"}),
        (evaluating_on_a_part_of_holdout_in_another_order, {"data.holdout": "recipe.same_data"}),
        (statistics_on_holdout, {"data.holdout": "recipe.same_data"}),
        (statistics_on_a_copy_of_holdout, {"data.holdout": "recipe.same_data"}),
        (
            targets_outside,
            {
                "data.evaluation: targets": "dataset.targets_outside_classes",
                "data.holdout: targets": "dataset.targets_outside_classes",
            },
        ),
        (
            every_source_has_nan,
            {
                "module-0: 0.weight": "sources.not_finite",
                "module-1: 2.bias": "sources.not_finite",
                "module-1: 4.weight": "sources.not_finite",
            },
        ),
        (
            nan_in_data,
            {"data.evaluation: inputs": "dataset.not_finite", "data.holdout: inputs": "dataset.not_finite"},
        ),
        (no_inputs, {"data.holdout: holdout.safetensors": "dataset.missing_tensor"}),
        (data_of_another_width, {"data.holdout: inputs": "dataset.wrong_shape"}),
        (
            missing_files,
            {
                "sources[0].checkpoint: {folder}/nowhere": "checkpoint.not_found",
                "data.evaluation": "dataset.unreadable",
            },
        ),
        (a_pickle, {"sources[1].checkpoint: {folder}/model.pt": "checkpoint.pickle"}),
        (a_folder_of_pickles, {"sources[1].checkpoint: {folder}/source-1/pytorch_model.bin": "checkpoint.pickle"}),
        (a_cut_checkpoint, {"sources[1].checkpoint: {folder}/source-1/model.safetensors": "checkpoint.truncated"}),
        (a_broken_network, {"sources[0].checkpoint: network.json: layers[0]": "network.invalid_value"}),
        (an_unusable_path, {"sources[0].checkpoint": "checkpoint.unreadable"}),
        (a_network_that_can_not_run, {"network": "network.cannot_run"}),
        (
            a_network_that_is_no_classifier,
            {f"data.{part}: targets": "dataset.wrong_output" for part in ("evaluation", "holdout")},
        ),
        (a_device_that_is_not_there, {"device": "recipe.no_such_device"}),
    ],
)
def test_bad_input_ends_in_one_error_with_place_and_remedy_and_nothing_written(
    tmp_path: Path, spoil: Spoil, expected: dict[str, str]
) -> None:
    folder = tmp_path / "inputs"
    given = copy.deepcopy(document(folder))
    spoil(folder, given)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(InvalidInput) as caught:
        cogram_core.fuse(given, tmp_path / "outputs" / "out")
    found = {problem.location: problem.code for problem in caught.value.problems}
    assert found == {place.replace("{folder}", str(folder)): code for place, code in expected.items()}
    for problem in caught.value.problems:
        # What is wrong, and what to do about it.
        assert ";" in problem.message or ":" in problem.message, problem
    assert entries(tmp_path / "outputs") == []


def test_the_same_file_is_refused_before_any_tensor_is_read_where_headers_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = document(tmp_path / "inputs")
    a_missing_key(tmp_path / "inputs", given)

    def read(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("cogram_core.checkpoints.reader.CheckpointReader.read", read)
    with pytest.raises(InvalidInput):
        cogram_core.fuse(given, tmp_path / "out")


def test_an_output_that_is_there_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "outputs" / "out"
    out.mkdir(parents=True)
    (out / "mine").write_text("precious")
    with pytest.raises(OutputError, match=r"output\.exists.*choose another folder"):
        cogram_core.fuse(document(tmp_path / "inputs"), out)
    assert entries(tmp_path / "outputs") == ["out"]
    assert (out / "mine").read_text() == "precious"


def test_an_output_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        cogram_core.fuse(document(tmp_path / "inputs"), tmp_path / "file" / "out")


def test_a_fused_number_that_does_not_fit_the_output_is_an_error_not_an_infinity(tmp_path: Path) -> None:
    given = document(tmp_path / "inputs", stages=[{"method": "linear"}], guard="off", data={})
    for source in (0, 1):
        spoil_tensor(tmp_path / "inputs", lambda state: state["0.weight"].fill_(1e5), source)
    with pytest.raises(InvalidInput) as caught:
        cogram_core.fuse(given | {"output": {"dtype": "float16"}}, tmp_path / "outputs" / "out")
    assert [(p.location, p.code) for p in caught.value.problems] == [("output: 0.weight", "output.not_finite")]
    assert entries(tmp_path / "outputs") == []
    cogram_core.fuse(given | {"output": {"dtype": "bfloat16"}}, tmp_path / "outputs" / "out")


def test_a_recipe_file_is_read_by_its_path_and_its_errors_are_the_recipes(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("sources: []\n")
    with pytest.raises(RecipeError):
        cogram_core.fuse(tmp_path / "r.yaml", tmp_path / "out")
    assert entries(tmp_path) == ["r.yaml"]


def test_every_error_of_the_core_is_one_family() -> None:
    assert issubclass(InvalidInput, CogramError)
    assert issubclass(OutputError, CogramError)
