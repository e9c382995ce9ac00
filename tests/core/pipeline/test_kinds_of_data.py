"""Values and token data through both doors: modules in memory, and recipes over files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import cogram_core
from cogram_core.errors import InvalidInput
from tests.core.factories import Pair, initialise, mlp, points, random, read_output, save_data, save_state

STAGES: list[Any] = ["linear", {"method": "cogram", "granularity": "neuron", "max_sweeps": {"layer": 2, "neuron": 1}}]


class Block(nn.Module):
    """What a recipe calls residual."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.Tanh())
        self.shortcut = nn.Sequential(nn.Linear(4, 4, bias=False))

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.layers(inputs) + self.shortcut(inputs)
        return found


def language_model(seed: int) -> nn.Sequential:
    """Scores of the next token from the last one."""
    return initialise(nn.Sequential(nn.Embedding(8, 4), Block(), nn.Linear(4, 8)), seed, 0.8)


def token_classifier(seed: int) -> nn.Sequential:
    """Class scores for sequences of five tokens."""
    return initialise(nn.Sequential(nn.Embedding(8, 4), Block(), nn.Flatten(), nn.Linear(20, 3)), seed, 0.8)


def linear(into: int, out: int, **rest: Any) -> dict[str, Any]:
    return {"type": "Linear", "in_features": into, "out_features": out, **rest}


BODY = [
    {"type": "Embedding", "num_embeddings": 8, "embedding_dim": 4},
    {
        "type": "Residual",
        "layers": [{"type": "LayerNorm", "normalized_shape": 4}, linear(4, 4), {"type": "Tanh"}],
        "shortcut": [linear(4, 4, bias=False)],
    },
]
NETWORKS: dict[str, list[dict[str, Any]]] = {
    "language": [*BODY, linear(4, 8)],
    "classifier": [*BODY, {"type": "Flatten"}, linear(20, 3)],
    "values": [linear(6, 8), {"type": "relu"}, linear(8, 5), {"type": "relu"}, linear(5, 4)],
}
BUILDS = {"language": language_model, "classifier": token_classifier, "values": mlp}


def sentences(seed: int, count: int = 24) -> Tensor:
    return torch.randint(0, 8, (count, 5), generator=random(seed))


def data_of(kind: str, seed: int) -> Pair:
    ids = sentences(seed)
    if kind == "language":
        ignored = torch.rand(ids.shape, generator=random(seed + 1)) < 0.3
        ignored[:, 2] = False
        return ids, torch.where(ignored, -100, ids)
    if kind == "classifier":
        return ids, ids[:, 0] % 3
    return points(seed, 24)[0], torch.randn(24, 4, generator=random(seed + 1))


def naive_loss(module: nn.Module, data: Pair) -> float:
    """By torch's own functions, over all tokens, values or examples."""
    with torch.no_grad():
        outputs, targets = module(data[0]).double(), data[1]
    if targets.is_floating_point():
        return float(nn.functional.mse_loss(outputs, targets.double()))
    if targets.ndim == 2:
        outputs, targets = outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten()
    return float(nn.functional.cross_entropy(outputs, targets, ignore_index=-100))


def loaded(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    module.load_state_dict(dict(state))
    return module


def written_recipe(folder: Path, kind: str, parts: Mapping[str, Pair], **changes: Any) -> dict[str, Any]:
    """A recipe over checkpoints with a ``network.json``, and data files; tokens and labels under their own names."""
    sources = []
    for place in range(2):
        path = save_state(folder / f"source-{place}", BUILDS[kind](place).state_dict())
        (path / "network.json").write_text(json.dumps({"kind": "sequential", "layers": NETWORKS[kind]}))
        sources.append({"name": f"module-{place}", "checkpoint": str(path)})
    files = {}
    for name, pair in parts.items():
        files[name] = str(folder / f"{name}.safetensors")
        if kind == "language":
            save_file({"input_ids": pair[0], "labels": pair[1].clone()}, files[name])
        else:
            save_data(Path(files[name]), pair)
    stages = [{"method": stage} if isinstance(stage, str) else stage for stage in STAGES]
    return {"sources": sources, "data": files, "stages": stages, **changes}


@pytest.mark.parametrize("kind", list(BUILDS))
def test_modules_and_files_give_the_same_network_and_the_verdict_is_that_of_the_loss(kind: str, tmp_path: Path) -> None:
    data = {"evaluation": data_of(kind, 10), "holdout": data_of(kind, 20)}
    modules = [BUILDS[kind](place) for place in range(2)]
    fused, trace = cogram_core.fuse_modules(modules, stages=STAGES, data=data)
    result = cogram_core.fuse(written_recipe(tmp_path / "inputs", kind, data), tmp_path / "out")
    output = read_output(result.output)
    assert all(torch.equal(output[name], tensor) for name, tensor in fused.state_dict().items())
    verdict = trace.metadata["verdict"]
    assert verdict["candidates"] == result.verdict["candidates"]
    by_label = {entry["label"]: entry for entry in verdict["candidates"]}
    for part in ("evaluation", "holdout"):
        for place, module in enumerate(modules):
            assert by_label[f"module-{place}"][part]["loss"] == pytest.approx(naive_loss(module, data[part]), rel=1e-5)
    chosen = by_label[verdict["written"]["label"]]["holdout"]
    assert naive_loss(fused, data["holdout"]) == pytest.approx(chosen["loss"], rel=1e-5)
    assert chosen["calibrated_loss"] <= min(entry["holdout"]["calibrated_loss"] for entry in by_label.values())
    assert (chosen["accuracy"] is None) == (kind == "values")
    assert (chosen["classes"] == []) == (kind != "classifier")


@pytest.mark.parametrize("kind", list(BUILDS))
def test_the_loss_on_the_evaluation_data_never_rises(kind: str) -> None:
    data = {"evaluation": data_of(kind, 10)}
    modules = [BUILDS[kind](place) for place in range(2)]
    stages = ["linear", {**STAGES[1], "prototypes": {"kind": "all"}}]
    fused, trace = cogram_core.fuse_modules(modules, stages=stages, data=data, guard="off")
    average = cogram_core.fuse_modules(modules, stages="linear", guard="off").module
    steps = [decision for decision in trace.decisions() if decision.method == "cogram"]
    assert steps[0].loss_before == pytest.approx(naive_loss(average, data["evaluation"]), rel=1e-5)
    losses = [steps[0].loss_before, *(step.loss_after for step in steps if step.action == "merged")]
    assert len(losses) > 1
    assert all(after < before for before, after in pairwise(losses))
    assert losses[-1] == pytest.approx(naive_loss(fused, data["evaluation"]), rel=1e-5)


def test_a_fused_language_model_is_a_source_again(tmp_path: Path) -> None:
    data = {"evaluation": data_of("language", 10), "holdout": data_of("language", 20)}
    given = written_recipe(tmp_path / "inputs", "language", data)
    first = cogram_core.fuse(given, tmp_path / "first")
    resolved = yaml.safe_load((first.output / "recipe.resolved.yaml").read_text())
    assert resolved["stages"][1]["prototypes"]["kind"] == "all"
    assert cogram_core.fuse(first.output / "recipe.resolved.yaml", tmp_path / "same").verdict == first.verdict
    again = {**given, "sources": [given["sources"][0], {"name": "fused", "checkpoint": str(first.output)}]}
    second = cogram_core.fuse(again, tmp_path / "second")
    figures = {entry["label"]: entry["holdout"]["loss"] for entry in second.verdict["candidates"]}
    model = loaded(language_model(9), load_file(first.output / "model.safetensors"))
    assert figures["fused"] == pytest.approx(naive_loss(model, data["holdout"]), rel=1e-5)


@pytest.mark.parametrize("kind", ["medoid", "examples", "all", "auto"])
def test_every_kind_of_prototype_that_token_data_has_decides(kind: str) -> None:
    data = {"evaluation": data_of("language", 10)}
    prototypes = {"kind": kind, **({} if kind == "all" else {"per_class": 6})}
    stages = ["linear", {"method": "cogram", "prototypes": prototypes}]
    _, trace = cogram_core.fuse_modules([language_model(0), language_model(1)], stages=stages, data=data, guard="off")
    shown = trace.metadata["recipe"]["stages"][1]["prototypes"]["kind"]
    assert shown == ("examples" if kind == "auto" else kind)
    assert any(decision.action == "merged" and decision.method == "cogram" for decision in trace.decisions())


def test_integers_that_a_network_computes_with_are_numbers() -> None:
    """Pixels: a linear layer refuses int64, so that they become floating numbers, as they do from a file."""
    pixels = torch.randint(0, 255, (20, 6), generator=random(0), dtype=torch.uint8)
    targets = torch.randint(0, 4, (20,), generator=random(1))
    found = [
        cogram_core.fuse_modules(
            [mlp(0), mlp(1)], stages=["fisher"], data={"evaluation": (inputs, targets)}, guard="off"
        )
        for inputs in (pixels, pixels.long(), pixels.float())
    ]
    for other in found[1:]:
        assert all(torch.equal(t, other.module.state_dict()[name]) for name, t in found[0].module.state_dict().items())


@pytest.mark.parametrize("flat", [False, True])
def test_one_value_an_example_may_stand_with_or_without_a_dimension_of_its_own(flat: bool) -> None:
    def build(seed: int) -> nn.Module:
        last = [nn.Flatten(0)] if flat else []
        return initialise(nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1), *last), seed)

    training = {"method": "finetune", "kickoff_epochs": 0, "epochs": 1}
    made = []
    for shape in ((24,), (24, 1)):
        data = {part: (points(seed, 24)[0], torch.randn(24, generator=random(seed)).reshape(shape))
                for seed, part in enumerate(("evaluation", "holdout", "training"))}  # fmt: skip
        made.append(cogram_core.fuse_modules([build(0), build(1)], stages=["fisher", "cogram", training], data=data))
    one, other = (fused.module.state_dict() for fused in made)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_decisions_and_verdict_may_be_taken_on_data_of_two_kinds() -> None:
    inputs, classes = points(0, 24)
    data = {"evaluation": (inputs, classes), "holdout": data_of("values", 1)}
    verdict = cogram_core.fuse_modules([mlp(0), mlp(1)], stages="linear", data=data).trace.metadata["verdict"]
    for place, entry in enumerate(verdict["candidates"][:2]):
        assert entry["holdout"]["accuracy"] is None
        assert entry["evaluation"]["accuracy"] is not None
        for part in ("evaluation", "holdout"):
            assert entry[part]["loss"] == pytest.approx(naive_loss(mlp(place), data[part]), rel=1e-5)


class Looking(nn.Module):
    """Looks tokens up without a module for it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(8, 3))

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, self.table).mean(1)


def refusal(modules: list[nn.Module], data: Pair, stages: Any = "linear", **guard: Any) -> dict[str, str]:
    parts = {"evaluation": (data[0][::2], data[1][::2]), "holdout": (data[0][1::2], data[1][1::2])}
    with pytest.raises(InvalidInput) as caught:
        cogram_core.fuse_modules(modules, stages=stages, data=parts, guard=guard or None)
    return {problem.location: problem.code for problem in caught.value.problems}


def test_values_have_no_accuracy_to_choose_by() -> None:
    found = refusal([mlp(0), mlp(1)], data_of("values", 0), mode="best_on_holdout", criterion="accuracy")
    assert found == {"guard.criterion": "recipe.no_accuracy"}


@pytest.mark.parametrize("kind", ["geometric", "arithmetic", "kmeans"])
def test_means_of_tokens_are_refused_before_anything_runs(kind: str) -> None:
    stages = [{"method": "cogram", "prototypes": {"kind": kind}}]
    found = refusal([language_model(0), language_model(1)], data_of("language", 0), stages)
    assert found == {"stages[1].prototypes.kind": "recipe.no_such_prototypes"}


def test_medoids_of_tokens_need_an_embedding_that_can_be_found() -> None:
    modules: list[nn.Module] = [initialise(Looking(), seed) for seed in (0, 1)]
    stages = ["linear", {"method": "cogram", "prototypes": {"kind": "medoid"}}]
    data = (sentences(0), sentences(1)[:, 0] % 3)
    assert refusal(modules, data, stages) == {"stages[1].prototypes.kind": "recipe.no_such_prototypes"}
    stages = ["linear", {"method": "cogram", "prototypes": {"kind": "examples"}}]
    fused = cogram_core.fuse_modules(modules, stages=stages, data={"evaluation": data}, guard="off").module
    assert fused(data[0]).shape == (24, 3)


def test_token_ids_without_a_row_are_refused() -> None:
    ids = sentences(0)
    for broken in (torch.where(ids == 3, 8, ids), torch.where(ids == 3, -1, ids)):
        found = refusal([token_classifier(0), token_classifier(1)], (broken, ids[:, 0] % 3))
        assert set(found.values()) == {"dataset.tokens_outside_vocabulary"}


def test_targets_that_the_outputs_cannot_be_held_against_are_refused() -> None:
    inputs, values = data_of("values", 0)
    places = {f"data.{part}: targets": "dataset.wrong_output" for part in ("evaluation", "holdout")}
    assert refusal([mlp(0), mlp(1)], (inputs, values[:, :3])) == places
    assert refusal([mlp(0), mlp(1)], (inputs, values[:, 0])) == places
    ids = sentences(0)
    assert refusal([language_model(0), language_model(1)], (ids, ids[:, 0])) == places
    labels = {place.replace("targets", "labels"): code for place, code in places.items()}
    assert refusal([token_classifier(0), token_classifier(1)], (ids, ids)) == labels
    outside = dict.fromkeys(labels, "dataset.targets_outside_classes")
    assert refusal([language_model(0), language_model(1)], (ids, ids + 1)) == outside


def test_labels_of_another_length_are_refused_where_no_other_text_is_told(tmp_path: Path) -> None:
    given = written_recipe(
        tmp_path, "language", {"evaluation": data_of("language", 10), "holdout": data_of("language", 20)}
    )
    tensors = load_file(given["data"]["holdout"])
    save_file({**tensors, "labels": tensors["labels"][:, :3].contiguous()}, given["data"]["holdout"])
    with pytest.raises(InvalidInput, match="give each place one") as caught:
        cogram_core.fuse(given, tmp_path / "out")
    assert [problem.code for problem in caught.value.problems] == ["dataset.invalid_targets"]


def test_padded_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    data = {"evaluation": data_of("language", 10), "holdout": data_of("language", 20)}
    given = written_recipe(tmp_path, "language", data)
    mask = torch.ones(24, 5, dtype=torch.int64)
    mask[3, 4] = 0
    tensors = load_file(given["data"]["holdout"])
    save_file({**tensors, "attention_mask": mask}, given["data"]["holdout"])
    with pytest.raises(InvalidInput, match="padded data come with the transformers networks") as caught:
        cogram_core.fuse(given, tmp_path / "out")
    assert [problem.code for problem in caught.value.problems] == ["dataset.padded"]
    save_file({**tensors, "attention_mask": torch.ones_like(mask)}, given["data"]["holdout"])
    assert cogram_core.fuse({**given, "stages": given["stages"][:1]}, tmp_path / "out").verdict["candidates"]
