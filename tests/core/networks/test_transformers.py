from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.errors import DatasetError, NetworkError
from cogram_core.evaluation.datasets import read_dataset
from cogram_core.evaluation.losses import example_losses
from cogram_core.networks.network import Network
from cogram_core.networks.shells import Shell
from cogram_core.networks.transformers import build_shell
from cogram_core.statistics.fisher import diagonal_fisher
from tests.core.networks.libraries import FAMILIES, LETTERS, own_outputs, saved


def shell_of(path: Path, architecture: str) -> Shell:
    header = read_checkpoint_header(path)
    shapes = {name: spec.shape for name, spec in header.tensors.items() if spec.floating}
    return build_shell(path, architecture, shapes, torch.float32)


def opened(path: Path, family: str, data: dict[str, Tensor]) -> tuple[Network, Any]:
    """The network of a checkpoint, and the data as it takes them."""
    shell, tensors = shell_of(path, FAMILIES[family].architecture), load_file(path / "model.safetensors")
    shell.fill(tensors, tensors.__getitem__)
    file = path.parent / f"{path.name}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in data.items()}, file)
    dataset = read_dataset(file, torch.float32, "data", shell.tokens)
    return Network(shell.module, dataset.inputs[:1], shell.parts), dataset


@pytest.mark.parametrize("family", [name for name, entry in FAMILIES.items() if entry.gives != "told"])
def test_a_network_gives_what_the_librarys_own_gives_for_each_text_without_padding(tmp_path: Path, family: str) -> None:
    path, data = saved(tmp_path, family), FAMILIES[family].data(1)
    network, dataset = opened(path, family, data)
    assert set(network.names) == {
        name for name, value in load_file(path / "model.safetensors").items() if value.is_floating_point()
    }
    assert {tensor for layer in network.layers for tensor in layer.tensors} == set(network.names)
    expected = own_outputs(type(network.module).from_pretrained(path).eval(), family, data)
    found = network.logits(dataset.inputs)
    if FAMILIES[family].gives == "labels":
        found = found[:, :-1]
    told = torch.isfinite(expected)
    assert found.shape == expected[:, : found.shape[1]].shape
    torch.testing.assert_close(found[told[:, : found.shape[1]]], expected[told], rtol=1e-4, atol=2e-5)


def padded_before(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same texts, standing at the end of their rows."""
    width = data["input_ids"].shape[1]
    places = (torch.arange(width) + data["attention_mask"].sum(dim=1, keepdim=True)) % width
    by_place = (
        {"input_ids", "attention_mask", "labels"} if data["labels"].ndim == 2 else {"input_ids", "attention_mask"}
    )
    return {name: rows.gather(1, places) if name in by_place else rows for name, rows in data.items()}


@pytest.mark.parametrize("family", ["bert", "bert masked", "gpt2", "mixtral", "t5 classifier"])
def test_a_loss_is_that_of_the_text_whatever_stands_before_or_behind_it(tmp_path: Path, family: str) -> None:
    data, path = FAMILIES[family].data(1), saved(tmp_path, family)
    before = padded_before(data)
    assert before["attention_mask"][:, -1].all()
    network, dataset = opened(path, family, data)
    losses = example_losses(dataset.loss, network.logits(dataset.inputs), dataset.targets)
    for row, loss in enumerate(losses[:4]):
        mask = data["attention_mask"][row].bool()
        alone = {
            name: value[row : row + 1] if value[row].ndim == 0 else value[row : row + 1, mask]
            for name, value in data.items()
        }
        one, single = opened(path, family, alone)
        assert one.present(single.inputs) is None or family == "bert masked"
        (found,) = example_losses(single.loss, one.logits(single.inputs), single.targets)
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    _, moved = opened(path, family, before)
    assert torch.equal(moved.inputs, dataset.inputs)
    assert torch.equal(moved.targets, dataset.targets)
    present = network.present(dataset.inputs)
    assert present is not None
    assert int(present.sum()) == int(data["attention_mask"].sum())


def test_labels_of_places_are_not_shifted(tmp_path: Path) -> None:
    data = FAMILIES["bert tokens"].data(1)
    network, dataset = opened(saved(tmp_path, "bert tokens"), "bert tokens", data)
    expected = own_outputs(network.module.from_pretrained(tmp_path / "bert-tokens-0").eval(), "bert tokens", data)
    losses = example_losses(dataset.loss, network.logits(dataset.inputs), dataset.targets)
    for row, loss in enumerate(losses):
        mask = data["attention_mask"][row].bool()
        own = torch.nn.functional.cross_entropy(expected[row][mask], data["labels"][row][mask])
        torch.testing.assert_close(loss, own.double(), rtol=1e-5, atol=1e-6)


def test_a_text_that_is_told_of_another_has_the_loss_that_the_library_gives_it(tmp_path: Path) -> None:
    data, path = FAMILIES["t5"].data(1), saved(tmp_path, "t5")
    network, dataset = opened(path, "t5", data)
    module = type(network.module).from_pretrained(path).eval()
    losses = example_losses(dataset.loss, network.logits(dataset.inputs), dataset.targets)
    for row, loss in enumerate(losses):
        ids, labels = data["input_ids"][row][data["attention_mask"][row].bool()], data["labels"][row]
        with torch.no_grad():
            own = module(input_ids=ids[None], labels=labels[labels != -100][None]).loss
        torch.testing.assert_close(loss, own.double(), rtol=1e-5, atol=1e-6)
    assert {"shared.weight"} <= set(network.names)
    assert network.present(dataset.inputs) is not None


def test_a_tied_tensor_is_one_whose_change_reaches_both_its_uses(tmp_path: Path) -> None:
    network, dataset = opened(saved(tmp_path, "gpt2"), "gpt2", FAMILIES["gpt2"].data(1))
    (layer,) = [layer for layer in network.layers if layer.tensors == ("transformer.wte.weight",)]
    assert (layer.neurons, network.cut(layer).module, network.layers[-1]) == (LETTERS, "", layer)
    assert "lm_head.weight" not in network.names
    network.tensor("transformer.wte.weight").zero_()
    assert not network.logits(dataset.inputs).any()


def test_what_a_checkpoint_holds_twice_stays_two_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path, "gpt2")
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = 2 * tensors["transformer.wte.weight"]
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    data = FAMILIES["gpt2"].data(1)
    network, dataset = opened(path, "gpt2", data)
    assert {"lm_head.weight", "transformer.wte.weight"} <= set(network.names)
    expected = own_outputs(type(network.module).from_pretrained(path).eval(), "gpt2", data)
    told, found = torch.isfinite(expected), network.logits(dataset.inputs)
    torch.testing.assert_close(found[told], expected[told], rtol=1e-4, atol=2e-5)


def test_an_experts_tensors_are_parts_of_one(tmp_path: Path) -> None:
    network, dataset = opened(saved(tmp_path, "mixtral"), "mixtral", FAMILIES["mixtral"].data(1))
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    layer = next(layer for layer in network.layers if layer.tensors == (name,))
    assert (layer.neurons, layer.module, network.cut(layer).module) == (0, None, "model.layers.1.mlp.experts")
    inner = network.module.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(network.tensor(name), inner[2, 24:])
    network.tensor(name).fill_(7.0)
    assert torch.equal(inner[2, 24:], torch.full((24, 16), 7.0))
    assert not (inner[2, :24] == 7.0).any()
    # With the same values given from outside, all parts of a tensor together, the same comes out.
    parts = {part: network.tensor(part).clone() for part in network.names if ".1.block_sparse_moe.experts." in part}
    expected = network.logits(dataset.inputs)
    network.tensor(name).zero_()
    with torch.no_grad():
        assert torch.equal(network.outputs(parts, dataset.inputs), expected)
        assert torch.equal(network.outputs({name: parts[name]}, dataset.inputs), expected)


def refusal(path: Path, architecture: str) -> dict[str, str]:
    with pytest.raises(NetworkError) as caught:
        shell_of(path, architecture)
    return {problem.location: problem.code for problem in caught.value.problems}


def test_architectures_that_the_library_has_not_are_refused_with_what_remains(tmp_path: Path) -> None:
    path = saved(tmp_path, "bert")
    for name in ("MyOwnNet", "BertConfig", "pipeline", "PreTrainedModel", "BertForQuestionAnswering", "WhisperModel"):
        with pytest.raises(NetworkError, match=r"the methods linear.* remain, with guard: off") as caught:
            shell_of(path, name)
        code = caught.value.problems[0].code
        assert (
            code
            == f"network.{'unknown' if name in ('MyOwnNet', 'BertConfig', 'pipeline') else 'unsupported'}_architecture"
        )


def test_tensors_that_do_not_fit_are_listed_before_any_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, "bert")
    tensors = load_file(path / "model.safetensors")
    del tensors["bert.pooler.dense.bias"]
    tensors["bert.extra.weight"] = torch.zeros(2)
    tensors["classifier.weight"] = torch.zeros(4, 16)
    save_file(tensors, path / "model.safetensors")
    assert refusal(path, "BertForSequenceClassification") == {
        "network: bert.extra.weight": "network.unexpected_tensor",
        "network: classifier.weight": "network.shape_mismatch",
        "network: bert.pooler.dense.bias": "network.missing_tensor",
    }


def test_a_bare_encoders_checkpoint_lacks_the_head(tmp_path: Path) -> None:
    assert refusal(saved(tmp_path, "bert encoder"), "BertForSequenceClassification") == {
        "network: classifier.weight": "network.missing_tensor",
        "network: classifier.bias": "network.missing_tensor",
    }


def test_code_that_a_configuration_names_is_never_run(tmp_path: Path) -> None:
    path = saved(tmp_path, "bert")
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Net"}
    config["attn_implementation"] = config["_attn_implementation"] = "stranger/kernel"
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    (path / "config.json").write_text(json.dumps(config))
    network, _ = opened(path, "bert", FAMILIES["bert"].data(1))
    assert type(network.module).__module__ == "transformers.models.bert.modeling_bert"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 17},
        {"hidden_size": "many"},
        {"num_hidden_layers": -1},
        {"model_type": "nothing", "vocab_size": None},
    ],
)
def test_configurations_that_are_none_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = saved(tmp_path, "bert")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    codes = set(refusal(path, "BertForSequenceClassification").values())
    assert codes <= {"network.invalid_configuration", "network.unexpected_tensor"}


def test_a_classifier_that_looks_for_the_end_takes_texts_with_equally_many(tmp_path: Path) -> None:
    path, data = saved(tmp_path, "t5 classifier"), FAMILIES["t5 classifier"].data(1)
    opened(path, "t5 classifier", data)
    last = data["attention_mask"].sum(dim=1) - 1
    data["input_ids"][3, last[3]] = 7
    with pytest.raises(DatasetError, match="have the id 2, the end, 0 to 1 times") as caught:
        opened(path, "t5 classifier", data)
    assert [problem.code for problem in caught.value.problems] == ["dataset.unequal_ends"]


def test_a_decoders_classifier_needs_to_know_what_padding_is(tmp_path: Path) -> None:
    def forget(module: Any) -> None:
        module.config.pad_token_id = None

    path = saved(tmp_path, "gpt2 classifier", change=forget)
    assert refusal(path, "GPT2ForSequenceClassification") == {"network": "network.invalid_configuration"}


def naive_fisher(module: Any, inputs: dict[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
    """The mean over examples, one after the other, of squared gradients: of log p(y) weighted by p(y) over all classes y;
    with labels of the sum of log p of each next token.
    """
    total = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    count = len(next(iter(inputs.values())))
    for row in range(count):
        logs = torch.log_softmax(
            module(**{key: value[row : row + 1] for key, value in inputs.items()}).logits[0], dim=-1
        )
        if labels is None:
            terms = [(float(logs[y].detach().exp()), logs[y]) for y in range(len(logs))]
        else:
            told = labels[row, 1:] != -100
            terms = [(1.0, logs[:-1][told].gather(1, labels[row, 1:][told][:, None]).sum())]
        for weight, term in terms:
            for name, gradient in zip(
                total, torch.autograd.grad(term, list(module.parameters()), retain_graph=True), strict=True
            ):
                total[name] += weight * gradient.square() / count
    return total


@pytest.mark.parametrize("family", ["vit", "mixtral"])
def test_fisher_information_has_the_checkpoints_names_and_parts(tmp_path: Path, family: str) -> None:
    data, path = FAMILIES[family].data(1, 3), saved(tmp_path, family)
    network, dataset = opened(path, family, data)
    found = diagonal_fisher(network, dataset, 3, "exact" if family == "vit" else "empirical")
    labels = data.pop("labels") if family == "mixtral" else None
    if labels is not None:
        labels = torch.where(data["attention_mask"].bool(), labels, -100)
    module = type(network.module).from_pretrained(path, experts_implementation="eager").eval()
    naive = naive_fisher(module, {key: value for key, value in data.items() if key != "labels"}, labels)
    assert found.keys() == set(network.names)
    for name, part in network.parts.items():
        torch.testing.assert_close(found[name].float(), part.of(naive[part.tensor]), rtol=1e-3, atol=1e-7)
