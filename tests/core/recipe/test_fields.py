from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from cogram_core.recipe import Recipe
from tests.core.recipe.documents import SOURCES, document, documents, messages, problems


@settings(deadline=None, max_examples=150)
@given(document=documents)
def test_a_recipe_survives_its_own_document(document: dict[str, Any]) -> None:
    recipe = Recipe.from_document(document)
    again = Recipe.from_document(recipe.to_document())
    assert again == recipe
    assert again.to_document() == recipe.to_document()


def test_the_defaults_are_those_of_the_documentation() -> None:
    recipe = Recipe.from_document(document())
    assert recipe.version == 1
    assert [source.weight for source in recipe.sources] == [1.0, 1.0]
    assert recipe.base is None
    assert recipe.network == "auto"
    assert (recipe.guard.mode, recipe.guard.criterion) == ("best_on_holdout", "calibrated_loss")
    assert recipe.compute_dtype == "float32"
    assert (recipe.output.dtype, recipe.output.max_shard_bytes) == ("source", 5_000_000_000)
    assert (recipe.seed, recipe.device, recipe.threads) == (0, "auto", "auto")


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (7, 7),
        ("7", 7),
        ("5GB", 5 * 10**9),
        ("5 gb", 5 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5kB", 1500),
        ("0.1 TB", 10**11),
        ("2B", 2),
    ],
)
def test_a_size_may_have_a_unit(written: object, size: int) -> None:
    assert Recipe.from_document(document(output={"max_shard_bytes": written})).output.max_shard_bytes == size


@pytest.mark.parametrize(
    "written", ["many", "5 parsecs", "-1", "1e9", "", 0, "0GB", True, 1.5, "9" * 400 + "GB", 2**64, [], "99999999999TB"]
)
def test_what_is_no_size_is_refused(written: object) -> None:
    assert problems(document(output={"max_shard_bytes": written})) == {"output.max_shard_bytes": "recipe.invalid_value"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("version", 2),
        ("version", "1"),
        ("version", True),
        ("sources", {}),
        ("sources", "a"),
        ("base", 1),
        ("base", ""),
        ("network", "sequential"),
        ("network", 3),
        ("network", []),
        ("data", []),
        ("stages", "cogram"),
        ("stages", []),
        ("stages", {}),
        ("guard", "maybe"),
        ("guard", True),
        ("guard", []),
        ("compute_dtype", "float16"),
        ("output", "float16"),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", "1"),
        ("seed", True),
        ("seed", 1.5),
        ("device", "tpu"),
        ("device", "cuda:٣"),
        ("device", "cuda:1000"),
        ("device", "cpu\n"),
        ("threads", 0),
        ("threads", "2"),
        ("threads", 1025),
        ("threads", False),
    ],
)
def test_a_wrong_value_is_told_at_its_place_and_only_there(place: str, value: object) -> None:
    found = problems(document(**{place: value}))
    assert found[place] == "recipe.invalid_value"
    assert set(found) - {place} <= ({"base"} if place == "base" else set())


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("name", {"name": "a b", "checkpoint": "x"}),
        ("name", {"name": "", "checkpoint": "x"}),
        ("name", {"name": "-a", "checkpoint": "x"}),
        ("name", {"name": "../a", "checkpoint": "x"}),
        ("name", {"name": "x" * 65, "checkpoint": "x"}),
        ("name", {"name": 1, "checkpoint": "x"}),
        ("checkpoint", {"name": "c", "checkpoint": ""}),
        ("checkpoint", {"name": "c", "checkpoint": ["x"]}),
        ("data", {"name": "c", "checkpoint": "x", "data": ""}),
        ("weight", {"name": "c", "checkpoint": "x", "weight": 0}),
        ("weight", {"name": "c", "checkpoint": "x", "weight": -1}),
        ("weight", {"name": "c", "checkpoint": "x", "weight": "1"}),
        ("weight", {"name": "c", "checkpoint": "x", "weight": True}),
        ("weight", {"name": "c", "checkpoint": "x", "weight": 1e308}),
        ("weight", {"name": "c", "checkpoint": "x", "weight": float("nan")}),
        ("weight", {"name": "c", "checkpoint": "x", "weight": float("inf")}),
    ],
)
def test_a_wrong_source_is_told_at_its_place(place: str, source: dict[str, Any]) -> None:
    assert problems(document(sources=[*SOURCES, source])) == {f"sources[2].{place}": "recipe.invalid_value"}


def test_a_missing_key_is_told() -> None:
    assert problems({"stages": [{"method": "linear"}]}) == {"sources": "recipe.missing_key"}
    assert problems({"sources": SOURCES}) == {"stages": "recipe.missing_key"}
    assert problems(document(sources=[*SOURCES, {"name": "c"}])) == {"sources[2].checkpoint": "recipe.missing_key"}
    assert problems(document(stages=[{"granularity": "layer"}])) == {"stages[0].method": "recipe.missing_key"}
    assert problems(document(guard={"criterion": "loss"})) == {"guard.mode": "recipe.missing_key"}


@pytest.mark.parametrize(
    ("changes", "place", "hint"),
    [
        ({"sead": 1}, "sead", "'seed'"),
        ({"sources": [*SOURCES, {"name": "c", "checkpoint": "c", "wieght": 1}]}, "sources[2].wieght", "'weight'"),
        ({"data": {"evaluation": "e", "holdout": "h", "holdot": "h"}}, "data.holdot", "'holdout'"),
        ({"guard": {"mode": "report", "criterium": "loss"}}, "guard.criterium", "'criterion'"),
        ({"output": {"dtpye": "float16"}}, "output.dtpye", "'dtype'"),
        (
            {"network": {"kind": "sequential", "layers": [{"type": "relu"}], "layer": []}},
            "network.layer",
            "'layers'",
        ),
        (
            {"network": {"kind": "sequential", "layers": [{"type": "relu"}, {"type": "Dropout", "q": 1}]}},
            "network.layers[1].q",
            "known here: name, p, type",
        ),
        (
            {"network": {"kind": "sequential", "layers": [{"type": "Flatten", "start_dims": 1}]}},
            "network.layers[0].start_dims",
            "'start_dim'",
        ),
        ({"stages": [{"method": "cogram", "granularty": "layer"}]}, "stages[0].granularty", "'granularity'"),
        ({"stages": [{"method": "cogram", "prototypes": {"clas": 1}}]}, "stages[0].prototypes.clas", "'per_class'"),
        ({"stages": [{"method": "cogram", "steepness": {"layr": 1}}]}, "stages[0].steepness.layr", "'layer'"),
        ({"zzz": 1}, "zzz", "known here: base,"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(changes: dict[str, Any], place: str, hint: str) -> None:
    given = document(**changes)
    assert problems(given) == {place: "recipe.unknown_key"}
    assert hint in messages(given)[place]


def test_a_key_as_long_as_a_book_is_refused_quickly() -> None:
    (place,) = problems(document(**{"x" * 10**6: 1}))
    assert len(messages(document(**{"x" * 10**6: 1}))[place]) < 400


def test_references_are_listed_and_exchanged_by_kind() -> None:
    sources = [{"name": "a", "checkpoint": "x", "data": "y"}, {"name": "b", "checkpoint": "y"}]
    recipe = Recipe.from_document(document(sources=sources))
    found = [(ref.location, ref.kind, ref.value) for ref in recipe.references()]
    assert found == [
        ("sources[0].checkpoint", "checkpoint", "x"),
        ("sources[0].data", "dataset", "y"),
        ("sources[1].checkpoint", "checkpoint", "y"),
        ("data.evaluation", "dataset", "eval.safetensors"),
        ("data.holdout", "dataset", "holdout.safetensors"),
    ]
    changed = recipe.with_references({("checkpoint", "y"): "new", ("dataset", "eval.safetensors"): "e2"})
    assert (changed.sources[0].data, changed.sources[1].checkpoint) == ("y", "new")
    assert (changed.data.evaluation, changed.data.holdout) == ("e2", "holdout.safetensors")
