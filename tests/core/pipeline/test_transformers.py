from __future__ import annotations

import json
import random as chance
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

import cogram_core
from cogram_core.errors import InvalidInput
from cogram_core.trace import Trace
from tests.core.networks.libraries import FAMILIES, own_outputs, saved


def recipe(folder: Path, family: str, stages: list[Any], **more: Any) -> dict[str, Any]:
    """Two sources of a family with evaluation and holdout data."""
    data = {}
    for seed, name in enumerate(("evaluation", "holdout")):
        data[name] = str(folder / f"{name}.safetensors")
        save_file({key: value.contiguous() for key, value in FAMILIES[family].data(seed).items()}, data[name])
    sources = [{"name": f"s{seed}", "checkpoint": str(saved(folder, family, seed))} for seed in (0, 1)]
    given = [stage if isinstance(stage, dict) else {"method": stage} for stage in stages]
    return {"sources": sources, "data": data, "stages": given, **more}


LAYERS = {"method": "cogram", "granularity": "layer", "max_sweeps": {"layer": 1}}


def holdout_loss(module: Any, family: str, data: dict[str, Tensor]) -> Tensor:
    """The mean loss by the library's own network, text by text: of classes, of the next token, or squared."""
    outputs = torch.empty(0) if FAMILIES[family].gives == "told" else own_outputs(module, family, data)
    match FAMILIES[family].gives:
        case "classes":
            return torch.nn.functional.cross_entropy(outputs, data["labels"])
        case "values":
            return torch.nn.functional.mse_loss(outputs, data["labels"])
        case "told":
            given = {"input_ids": data["input_ids"], "attention_mask": data["attention_mask"]}
            with torch.no_grad():  # the mean over all of the batch's tokens
                loss: Tensor = module(**given, labels=data["labels"]).loss
            return loss
        case _:
            told = data["attention_mask"][:, 1:].bool()
            return torch.nn.functional.cross_entropy(outputs[:, :-1][told], data["labels"][:, 1:][told])


@pytest.mark.parametrize("family", ["bert", "gpt2", "mixtral", "clip vision", "resnet", "vit", "t5"])
def test_a_fused_folder_loads_with_the_library_and_gives_the_fused_networks_losses(tmp_path: Path, family: str) -> None:
    given = recipe(tmp_path, family, [{"method": "fisher", "examples": 4}, LAYERS], guard="report")
    found = cogram_core.fuse(given, tmp_path / "out")
    assert found.report["recipe"]["network"] == {"kind": "transformers", "architecture": FAMILIES[family].architecture}
    last = found.verdict["candidates"][-1]
    data = FAMILIES[family].data(1)
    module = type(FAMILIES[family].build(0)).from_pretrained(tmp_path / "out").eval()
    assert last["holdout"]["loss"] == pytest.approx(float(holdout_loss(module, family, data)), rel=1e-4)
    decisions = list(Trace(tmp_path / "out" / "trace.parquet").decisions())
    assert any(decision.method == "cogram" and decision.action == "merged" for decision in decisions)
    assert not any(
        "evaluated in full" in decision.reason
        for decision in decisions
        if decision.layer not in ("transformer.wte", "shared")
    )
    sources = [source["checkpoint"] for source in given["sources"]]
    again = cogram_core.replay(sources, tmp_path / "out" / "trace.parquet", tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
    # The folder is a source again.
    assert cogram_core.inspect(tmp_path / "out")["network"] == "transformers"


def test_texts_are_fused_on_by_the_checkpoints_own_tokenizer(tmp_path: Path) -> None:
    prototypes = {"kind": "medoid", "per_class": 2}
    given = recipe(tmp_path, "bert", ["linear", LAYERS | {"prototypes": prototypes}], guard="report")
    letters = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *"abcdefgh"])}
    tokenizer = Tokenizer(WordLevel(letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(Path(given["sources"][0]["checkpoint"]) / "tokenizer.json"))
    drawn = chance.Random(0)
    rows = [
        {"text": " ".join(drawn.choices("abcdefgh", k=drawn.randint(1, 12))), "label": drawn.randrange(3)}
        for _ in range(40)
    ]
    for name, part in (("evaluation", rows[:20]), ("holdout", rows[20:])):
        given["data"][name] = str(tmp_path / f"{name}.jsonl")
        Path(given["data"][name]).write_text("\n".join(map(json.dumps, part)))
    given["data"]["max_tokens"] = 6
    found = cogram_core.fuse(given, tmp_path / "out")
    module = type(FAMILIES["bert"].build(0)).from_pretrained(tmp_path / "out").eval()
    losses = []
    for row in rows[20:]:
        ids = torch.tensor([[letters[letter] for letter in row["text"].split()][:6]])
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(module(ids).logits, torch.tensor([row["label"]])))
    last = found.verdict["candidates"][-1]["holdout"]
    assert last["examples"] == 20
    assert last["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_training_reaches_every_part_of_a_joined_tensor(tmp_path: Path) -> None:
    train = {"method": "finetune", "epochs": 1, "kickoff_epochs": 0}
    given = recipe(tmp_path, "mixtral", ["linear", train], guard="off")
    given["data"] = {"training": given["data"]["evaluation"]}
    cogram_core.fuse(given, tmp_path / "out")
    decisions = [d for d in Trace(tmp_path / "out" / "trace.parquet").decisions() if d.method == "finetune"]
    assert {d.layer for d in decisions} == set(load_file(tmp_path / "out" / "model.safetensors"))
    assert all(d.action == "trained" and d.loss_after < d.loss_before for d in decisions)


def test_an_output_of_another_dtype_says_so_in_its_configuration(tmp_path: Path) -> None:
    given = recipe(tmp_path, "bert", ["linear"], guard="off", output={"dtype": "bfloat16"}) | {"data": {}}
    cogram_core.fuse(given, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    module = type(FAMILIES["bert"].build(0)).from_pretrained(tmp_path / "out")
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, tensors[name]) for name, value in module.state_dict().items())


def refusal(given: dict[str, Any], folder: Path) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        cogram_core.fuse(given, folder / "out")
    return {problem.location: problem.code for problem in caught.value.problems}


def test_a_configuration_that_names_no_one_architecture_needs_one_from_the_recipe(tmp_path: Path) -> None:
    given = recipe(tmp_path, "bert", ["linear"], network={"kind": "transformers"}, guard="report")
    file = Path(given["sources"][0]["checkpoint"]) / "config.json"
    config = json.loads(file.read_text())
    for names in ([], ["BertModel", "BertForSequenceClassification"]):
        file.write_text(json.dumps(config | {"architectures": names}))
        assert refusal(given, tmp_path) == {"network": "network.no_architecture"}
    network = {"kind": "transformers", "architecture": "BertForSequenceClassification"}
    cogram_core.fuse(given | {"network": network}, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["BertForSequenceClassification"]


def test_what_no_network_can_be_built_of_says_what_remains_and_merges_by_tensor(tmp_path: Path) -> None:
    given = recipe(tmp_path, "bert", ["linear"], guard="report")
    for source in given["sources"]:
        file = Path(source["checkpoint"]) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": ["HomeMadeNet"]}))
    with pytest.raises(InvalidInput, match=r"no network 'HomeMadeNet'.*the methods linear.* remain, with guard: off"):
        cogram_core.fuse(given, tmp_path / "out")
    file.unlink()
    (Path(given["sources"][0]["checkpoint"]) / "config.json").write_text("{}{")
    assert refusal(given | {"network": {"kind": "transformers"}}, tmp_path) == {"network": "network.no_configuration"}
    assert refusal(given, tmp_path) == {"network": "network.not_inferred"}
    cogram_core.fuse(given | {"guard": "off", "data": {}}, tmp_path / "out")


def test_data_that_the_network_cannot_take_is_refused(tmp_path: Path) -> None:
    given = recipe(tmp_path, "bert", ["linear"], guard="report")
    data = FAMILIES["bert"].data(5)
    wrong: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = {
        "ids": (
            data | {"input_ids": data["input_ids"] + 50},
            {"data.holdout: input_ids": "dataset.tokens_outside_vocabulary"},
        ),
        "empty": (
            data | {"attention_mask": torch.zeros_like(data["input_ids"])},
            {"data.holdout: input_ids: attention_mask": "dataset.empty_text"},
        ),
        "types": (
            data | {"token_type_ids": data["attention_mask"] + 1},
            {"data.holdout: input_ids: token_type_ids": "dataset.types_outside"},
        ),
        "long": (
            {name: value.repeat(1, 8) if value.ndim == 2 else value for name, value in data.items()},
            {"data.holdout: input_ids": "dataset.too_long"},
        ),
        "classes": (
            data | {"labels": data["labels"] + 2},
            {"data.holdout: targets": "dataset.targets_outside_classes"},
        ),
        "labels": (data | {"labels": data["input_ids"].clone()}, {"data.holdout: labels": "dataset.wrong_output"}),
    }
    for name, (tensors, codes) in wrong.items():
        file = tmp_path / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, file)
        assert refusal(given | {"data": given["data"] | {"holdout": str(file)}}, tmp_path) == codes, name
