from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cogram_core.networks.sequential import build
from cogram_core.preflight import (
    CheckpointSummary,
    DatasetFacts,
    Preflight,
    needs_network,
    preflight,
    summarise_checkpoint,
)
from cogram_core.recipe import Recipe, SequentialNetwork
from tests.core.factories import conv_net, mlp, save_checkpoint, save_state

FACTS = DatasetFacts(examples=10, input_shape=(6,), target_min=0, target_max=3)


def check(
    summaries: dict[str, CheckpointSummary], facts: dict[str, DatasetFacts] | None = None, **changes: Any
) -> Preflight:
    sources = [{"name": name, "checkpoint": name} for name in summaries]
    document = {"sources": sources, "data": {"evaluation": "eval", "holdout": "hold"}, "method": "cogram"}
    recipe = Recipe.from_document({key: value for key, value in (document | changes).items() if value is not None})
    return preflight(recipe, summaries, {"eval": FACTS, "hold": FACTS, **(facts or {})})


def found(result: Preflight) -> dict[str, str]:
    assert all(problem.message for problem in result.problems)
    return {problem.location: problem.code for problem in result.problems}


def saved(folder: Path, name: str, change: dict[str, Tensor | None] | None = None) -> CheckpointSummary:
    state = mlp(0).state_dict() | (change or {})
    return summarise_checkpoint(save_state(folder / name, {key: t for key, t in state.items() if t is not None}))


def test_sources_that_fit_have_no_problems_and_a_network(tmp_path: Path) -> None:
    result = check({name: saved(tmp_path, name) for name in ("a", "b")})
    assert result.problems == ()
    assert result.layers is not None
    assert [layer.torch_class for layer in result.layers] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_all_differences_of_all_sources_are_listed_at_once(tmp_path: Path) -> None:
    changes: dict[str, Tensor | None] = {
        "0.weight": torch.zeros(7, 6),
        "2.weight": torch.zeros(5, 8, dtype=torch.bfloat16),
        "4.bias": None,
        "extra": torch.zeros(1),
    }
    summaries = {"a": saved(tmp_path, "a"), "b": saved(tmp_path, "b", changes), "c": saved(tmp_path, "c", changes)}
    result = check(summaries)
    for name in ("b", "c"):
        assert found(result)[f"{name}: 0.weight"] == "sources.shape_mismatch"
        assert found(result)[f"{name}: 2.weight"] == "sources.dtype_mismatch"
        assert found(result)[f"{name}: 4.bias"] == "sources.missing_tensor"
        assert found(result)[f"{name}: extra"] == "sources.unexpected_tensor"
    assert len(result.problems) == 8
    assert "[7, 6], in a it is [8, 6]" in str(next(p for p in result.problems if p.location == "b: 0.weight"))


def test_integers_are_compared_as_well(tmp_path: Path) -> None:
    summaries = {
        "a": saved(tmp_path, "a", {"count": torch.tensor(1)}),
        "b": saved(tmp_path, "b", {"count": torch.tensor([1, 2])}),
    }
    assert found(check(summaries, method="linear", data={}, guard="off")) == {"b: count": "sources.shape_mismatch"}


def test_a_flood_of_problems_is_cut_and_counted(tmp_path: Path) -> None:
    many = {f"t{place}": torch.zeros(1) for place in range(80)}
    summaries = {
        "a": summarise_checkpoint(save_state(tmp_path / "a", many)),
        "b": summarise_checkpoint(save_state(tmp_path / "b", {"other": torch.zeros(1)})),
    }
    problems = check(summaries, method="linear", data={}, guard="off").problems
    assert len(problems) == 51
    assert problems[-1].message.startswith("31 more problems")


def test_a_network_that_is_not_inferred_is_asked_for_only_where_one_has_to_run(tmp_path: Path) -> None:
    summaries = {name: saved(tmp_path, name, {"odd": torch.zeros(2)}) for name in ("a", "b")}
    assert found(check(summaries)) == {"network": "network.not_inferred"}
    assert check(summaries, method="linear", data={}, guard="off").problems == ()


def test_a_described_network_is_held_against_the_checkpoint(tmp_path: Path) -> None:
    layers = [
        {"type": "Linear", "in_features": 6, "out_features": 8},
        {"type": "relu"},
        {"type": "Linear", "in_features": 8, "out_features": 4, "name": "2"},
        {"type": "Linear", "in_features": 4, "out_features": 4, "name": "head"},
    ]
    summaries = {name: saved(tmp_path, name) for name in ("a", "b")}
    assert found(check(summaries, network={"kind": "sequential", "layers": layers})) == {
        "a: 2.weight": "network.shape_mismatch",
        "a: 2.bias": "network.shape_mismatch",
        "a: 4.weight": "network.unexpected_tensor",
        "a: 4.bias": "network.unexpected_tensor",
        "a: head.weight": "network.missing_tensor",
        "a: head.bias": "network.missing_tensor",
    }


def test_a_description_of_monstrous_layers_costs_nothing(tmp_path: Path) -> None:
    monster = {"type": "Linear", "in_features": 2**24, "out_features": 2**24}
    summaries = {name: saved(tmp_path, name) for name in ("a", "b")}
    result = check(summaries, network={"kind": "sequential", "layers": [monster] * 1000})
    assert {problem.code for problem in result.problems} >= {"network.missing_tensor", "network.shape_mismatch"}


def test_data_that_does_not_fit_is_told_for_every_dataset(tmp_path: Path) -> None:
    wide = DatasetFacts(examples=10, input_shape=(7,), target_min=0, target_max=3)
    outside = DatasetFacts(examples=10, input_shape=(6,), target_min=-1, target_max=4)
    summaries = {name: saved(tmp_path, name) for name in ("a", "b")}
    sources = [{"name": "a", "checkpoint": "a", "data": "own"}, {"name": "b", "checkpoint": "b"}]
    result = check(summaries, {"eval": wide, "hold": outside, "own": outside}, sources=sources)
    assert found(result) == {
        "data.evaluation: inputs": "dataset.wrong_shape",
        "data.holdout: targets": "dataset.targets_outside_classes",
        "sources[0].data: targets": "dataset.targets_outside_classes",
    }
    assert "reach from -1 to 4, but the network has the classes 0 to 3" in result.problems[-1].message


def test_inputs_are_held_against_a_convolution_too(tmp_path: Path) -> None:
    summaries = {name: summarise_checkpoint(save_checkpoint(tmp_path / name, conv_net(0))) for name in ("a", "b")}

    def inputs(*shape: int) -> dict[str, str]:
        facts = DatasetFacts(examples=10, input_shape=shape, target_min=0, target_max=2)
        return found(check(summaries, {"eval": facts, "hold": facts}))

    assert inputs(1, 4, 4) == {}
    for shape in ((4, 4), (3, 4, 4), (16,)):
        assert set(inputs(*shape).values()) == {"dataset.wrong_shape"}


BLOCKS: list[dict[str, Any]] = [
    {"type": "Embedding", "num_embeddings": 9, "embedding_dim": 4},
    {"type": "Residual", "layers": [{"type": "Linear", "in_features": 4, "out_features": 4}]},
]
HEAD = {"type": "Linear", "in_features": 4, "out_features": 9}
LANGUAGE = DatasetFacts(10, (6,), 0, 8, "causal_lm", (6,), token_min=0, token_max=8)


def summary_of(folder: Path, *layers: dict[str, Any]) -> dict[str, CheckpointSummary]:
    described = SequentialNetwork.model_validate({"kind": "sequential", "layers": layers})
    state = build(described.layers, torch.float32, torch.device("cpu")).state_dict()
    return {name: summarise_checkpoint(save_state(folder / name, state)) for name in ("a", "b")}


def test_token_data_is_held_against_the_embedding_and_the_last_layer(tmp_path: Path) -> None:
    layers = [{"type": "identity"}, *BLOCKS, HEAD]
    summaries = summary_of(tmp_path, *layers)

    def judged(**changes: Any) -> dict[str, str]:
        facts = replace(LANGUAGE, **changes)
        network = {"kind": "sequential", "layers": layers}
        return found(check(summaries, {"eval": facts, "hold": LANGUAGE}, network=network))

    assert judged() == {}
    for wrong in ({"token_min": -1}, {"token_max": 9}):
        assert judged(**wrong) == {"data.evaluation: input_ids": "dataset.tokens_outside_vocabulary"}
    for wrong in ({"target_min": -1}, {"target_max": 9}):
        assert judged(**wrong) == {"data.evaluation: labels": "dataset.targets_outside_classes"}


def test_token_ids_need_a_network_that_begins_with_an_embedding(tmp_path: Path) -> None:
    layers = [BLOCKS[1], HEAD]
    result = check(summary_of(tmp_path, *layers), {"eval": LANGUAGE}, network={"kind": "sequential", "layers": layers})
    assert found(result) == {
        "data.evaluation: input_ids": "dataset.tokens_without_embedding",
        "data.holdout: inputs": "dataset.wrong_shape",
    }


def test_values_are_held_against_the_last_layer(tmp_path: Path) -> None:
    summaries = {name: saved(tmp_path, name) for name in ("a", "b")}
    for shape, fits in (((4,), True), ((3,), False), ((), False), ((7, 4), True)):
        facts = DatasetFacts(10, (6,), None, None, "mean_squared_error", shape)
        expected = {} if fits else {"data.holdout: targets": "dataset.wrong_output"}
        assert found(check(summaries, {"hold": facts})) == expected


def test_a_network_is_needed_where_data_or_the_guard_takes_part() -> None:
    sources = [{"name": name, "checkpoint": name} for name in "ab"]
    data = {"evaluation": "e", "holdout": "h"}
    assert not needs_network(Recipe.from_document({"sources": sources, "method": "linear"}))
    assert needs_network(Recipe.from_document({"sources": sources, "method": "linear", "data": data}))
    assert not needs_network(
        Recipe.from_document({"sources": sources, "method": "linear", "data": data, "guard": "off"})
    )
    assert needs_network(Recipe.from_document({"sources": sources, "method": "cogram", "data": data, "guard": "off"}))


def test_a_holdout_set_that_decisions_see_is_refused(tmp_path: Path) -> None:
    summaries = {name: saved(tmp_path, name) for name in ("a", "b")}
    result = check(summaries, data={"evaluation": "eval", "holdout": "eval"})
    assert found(result) == {"data.holdout": "recipe.same_data"}
    sources = [{"name": "a", "checkpoint": "a"}, {"name": "b", "checkpoint": "b", "data": "hold"}]
    (problem,) = check(summaries, sources=sources, method="fisher").problems
    assert (problem.location, problem.code) == ("data.holdout", "recipe.same_data")
    assert "the data of b" in problem.message


def test_values_are_judged_by_no_accuracy(tmp_path: Path) -> None:
    summaries = {name: saved(tmp_path, name) for name in ("a", "b")}
    values = DatasetFacts(10, (6,), None, None, "mean_squared_error", (4,))
    for facts in ({"eval": values}, {"hold": values}, {"eval": values, "hold": values}):
        guard = {"mode": "report", "criterion": "accuracy"}
        assert found(check(summaries, facts, guard=guard)) == {"guard.criterion": "recipe.no_accuracy"}
        assert found(check(summaries, facts, guard={**guard, "criterion": "loss"})) == {}
        assert found(check(summaries, facts, guard={**guard, "mode": "off"})) == {}


@pytest.mark.parametrize("kind", ["geometric", "arithmetic", "kmeans", "medoid", "examples", "all", "auto"])
def test_token_data_has_no_prototypes_that_are_means(tmp_path: Path, kind: str) -> None:
    layers = [*BLOCKS, HEAD]
    network = {"kind": "sequential", "layers": layers}
    stages = [{"method": "fisher"}, {"method": "cogram", "prototypes": {"kind": kind}}]
    facts = {"eval": LANGUAGE, "hold": LANGUAGE}
    result = check(summary_of(tmp_path, *layers), facts, network=network, stages=stages, method=None)
    refused = kind in {"geometric", "arithmetic", "kmeans"}
    assert found(result) == ({"stages[1].prototypes.kind": "recipe.no_such_prototypes"} if refused else {})
