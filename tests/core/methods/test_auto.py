"""``auto`` chooses by what there is; what it chose stands in the resolved recipe, and why in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cogram_core import Recipe, fuse, fuse_modules, replay
from cogram_core.evaluation.datasets import Dataset
from cogram_core.methods import auto
from cogram_core.methods.contract import Given
from cogram_core.networks.network import Network
from cogram_core.sources import LoadedSource, MemoryStore
from tests.core.factories import checkpoint_bytes, initialise, mlp, points, recipe_document, specialists
from tests.core.recipe.documents import document, problems

DATA = Dataset(*points(5))


def given(modules: list[nn.Module], own: Dataset | None = None, **changed: Any) -> Given:
    sources = [
        LoadedSource(str(i), 1.0, MemoryStore(str(i), m.state_dict()), torch.float32, torch.device("cpu"), own)
        for i, m in enumerate(modules)
    ]
    network = Network(modules[0], DATA.inputs[:1])
    return Given(**({"sources": sources, "network": network, "evaluation": DATA, "has_base": False} | changed))


def chosen(what: Given) -> list[str]:
    found = auto.choose(what, auto.Params())
    assert all(one.why for one in found)
    return [one.method for one in found]


def noisy(module: nn.Sequential, seed: int, scale: float) -> nn.Sequential:
    other = mlp(seed)
    with torch.no_grad():
        for mine, origin in zip(other.parameters(), module.parameters(), strict=True):
            mine.copy_(origin + scale * mine)
    return other


def test_sources_of_one_origin_are_not_aligned_and_others_are() -> None:
    alike = [mlp(1), noisy(mlp(1), 2, 0.5)]
    assert chosen(given(alike)) == ["chain_of_merges", "cogram"]
    others = [mlp(1), mlp(2)]
    assert chosen(given(others)) == ["align", "chain_of_merges", "cogram"]
    assert chosen(given([*alike, mlp(3)]))[0] == "align"


def test_a_base_says_that_sources_are_of_one_origin() -> None:
    assert chosen(given([mlp(1), mlp(2)], has_base=True)) == ["chain_of_merges", "cogram"]


def test_own_data_alone_are_enough_for_statistics_but_not_for_decisions() -> None:
    alike = [mlp(1), noisy(mlp(1), 2, 0.5)]
    assert chosen(given(alike, own=DATA, evaluation=None)) == ["chain_of_merges"]


def test_without_data_it_is_the_weighted_mean() -> None:
    assert chosen(given([mlp(1), mlp(2)], evaluation=None)) == ["linear"]
    assert chosen(given([mlp(1), mlp(2)], network=None)) == ["linear"]


def test_very_many_neurons_are_not_visited_one_by_one() -> None:
    wide = nn.Sequential(nn.Linear(6, 6000, bias=False), nn.ReLU(), nn.Linear(6000, 4))
    found = auto.choose(given([initialise(wide, 1), initialise(wide, 1)]), auto.Params())
    assert dict(found[-1].parameters) == {"granularity": "layer"}


def test_likeness_is_the_median_cosine_of_matrices() -> None:
    one, two = mlp(1), mlp(2)
    pairs = [
        (a.detach().double().numpy().ravel(), b.detach().double().numpy().ravel())
        for (name, a), b in zip(one.named_parameters(), two.parameters(), strict=True)
        if name.endswith("weight")
    ]
    expected = np.median([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in pairs])
    whys = [choice.why for choice in auto.choose(given([one, two]), auto.Params())]
    assert f"is {expected:.2f}," in whys[0]


def test_what_was_chosen_stands_in_the_recipe_and_why_in_the_report(tmp_path: Path) -> None:
    modules = specialists(3)
    recipe = recipe_document(tmp_path / "in", modules, ["auto"], evaluation=points(8), holdout=points(9))
    found = fuse(recipe, tmp_path / "out")
    resolved = Recipe.load(tmp_path / "out" / "recipe.resolved.yaml")
    methods = [stage.method for stage in resolved.stages]
    assert methods[-2:] == ["chain_of_merges", "cogram"]
    assert [one["method"] for one in found.report["chosen"]] == methods
    assert all(one["why"] for one in found.report["chosen"])
    named = fuse({**recipe, "stages": [stage.model_dump() for stage in resolved.stages]}, tmp_path / "named")
    assert named.report["chosen"] == []
    assert checkpoint_bytes(tmp_path / "named") == checkpoint_bytes(tmp_path / "out")
    sources = [source["checkpoint"] for source in recipe["sources"]]
    replay(sources, tmp_path / "out" / "trace.parquet", tmp_path / "again")
    assert checkpoint_bytes(tmp_path / "again") == checkpoint_bytes(tmp_path / "out")


def test_a_base_takes_part_in_the_choice_and_in_nothing_else(tmp_path: Path) -> None:
    recipe = recipe_document(tmp_path / "in", specialists(3), ["auto"], evaluation=points(8), holdout=points(9))
    recipe["base"] = recipe["sources"][0]["checkpoint"]
    fuse(recipe, tmp_path / "out")
    resolved = Recipe.load(tmp_path / "out" / "recipe.resolved.yaml")
    assert resolved.base is None
    assert [stage.method for stage in resolved.stages] == ["chain_of_merges", "cogram"]


def test_checkpoints_without_data_need_no_network(tmp_path: Path) -> None:
    # Nothing that a network could be told from by names and shapes.
    modules: list[nn.Module] = [nn.Sequential(nn.BatchNorm2d(3)) for _ in range(2)]
    fuse(recipe_document(tmp_path / "in", modules, ["auto"]), tmp_path / "auto")
    fuse(recipe_document(tmp_path / "in2", modules, ["linear"]), tmp_path / "linear")
    assert checkpoint_bytes(tmp_path / "auto") == checkpoint_bytes(tmp_path / "linear")


def test_modules_are_chosen_for_as_well() -> None:
    data = {"evaluation": points(8), "holdout": points(9)}
    found = fuse_modules(specialists(3), stages="auto", data=data)
    assert {decision.method for decision in found.trace.decisions()} >= {"chain_of_merges"}


@pytest.mark.parametrize("stages", [["auto", "linear"], ["fisher", "auto"]])
def test_it_stands_alone(stages: list[str]) -> None:
    found = problems(document(stages=[{"method": stage} for stage in stages]))
    assert "recipe.not_alone" in found.values()
