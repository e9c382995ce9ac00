from __future__ import annotations

from typing import Any

import pytest

from cogram_core.errors import RecipeError
from cogram_core.recipe import Recipe
from tests.core.recipe.documents import DATA, SOURCES, document, messages, problems

OWN_DATA = [{"name": "a", "checkpoint": "a", "data": "da"}, {"name": "b", "checkpoint": "b", "data": "db"}]


def test_one_source_or_none_is_too_few() -> None:
    assert problems(document(sources=SOURCES[:1])) == {"sources": "recipe.too_few_sources"}
    assert problems(document(sources=[])) == {"sources": "recipe.too_few_sources"}


def test_names_of_sources_must_differ() -> None:
    assert problems(document(sources=[*SOURCES, SOURCES[0]])) == {"sources": "recipe.duplicate_name"}
    assert "'a'" in messages(document(sources=[*SOURCES, SOURCES[0]]))["sources"]
    odd = [{"name": name, "checkpoint": "a"} for name in ({}, [], None, 1)]
    assert "sources[0].name" in problems(document(sources=odd))


def test_a_base_that_no_stage_uses_is_refused() -> None:
    assert problems(document(base="./base")) == {"base": "recipe.unused_base"}


def test_a_guard_without_holdout_data_is_refused() -> None:
    for guard in (None, "best_on_holdout", "report", {"mode": "report", "criterion": "accuracy"}):
        given = document(data={"evaluation": "e"}, guard=guard)
        assert problems(given) == {"data.holdout": "recipe.missing_holdout"}
        assert "guard: off" in messages(given)["data.holdout"]
    assert Recipe.from_document(document(data={"evaluation": "e"}, guard="off")).guard.mode == "off"


def test_a_method_that_decides_on_data_needs_evaluation_data() -> None:
    for method in ("fisher", "cogram"):
        given = document(data={"holdout": "h"}, stages=[{"method": method}])
        assert problems(given) == {"data.evaluation": "recipe.missing_evaluation"}
        assert f"stages[0] ({method})" in messages(given)["data.evaluation"]


def test_a_merging_method_may_work_on_the_sources_own_data() -> None:
    given = document(sources=OWN_DATA, data={"holdout": "h"}, stages=[{"method": "fisher"}])
    assert Recipe.from_document(given).data.evaluation is None
    given = document(sources=OWN_DATA, data={"holdout": "h"})
    assert problems(given) == {"data.evaluation": "recipe.missing_evaluation"}


def test_a_training_stage_needs_training_data_and_nothing_else_takes_any() -> None:
    stages = [{"method": "linear"}, {"method": "finetune"}]
    given = document(data={"holdout": "h"}, stages=stages)
    assert problems(given) == {"data.training": "recipe.missing_training"}
    assert "stages[1] (finetune)" in messages(given)["data.training"]
    recipe = Recipe.from_document(document(data={"holdout": "h", "training": "t"}, stages=stages))
    assert [reference.location for reference in recipe.references()][-2:] == ["data.holdout", "data.training"]
    assert recipe.with_references({("dataset", "t"): "there"}).data.training == "there"
    unused = {"data.training": "recipe.unused_training"}
    assert problems(document(data={**DATA, "training": "t"})) == unused


def test_a_training_first_stage_starts_from_fisher_which_needs_evaluation_data() -> None:
    given = document(data={**DATA, "training": "t"}, stages=[{"method": "finetune", "epochs": 1}])
    assert [stage.method for stage in Recipe.from_document(given).stages] == ["fisher", "finetune"]
    given["data"] = {"holdout": "h", "training": "t"}
    assert problems(given) == {"data.evaluation": "recipe.missing_evaluation"}
    assert "starts from fisher" in messages(given)["data.evaluation"]
    assert Recipe.from_document(given | {"sources": OWN_DATA}).data.evaluation is None


def test_a_merging_stage_would_overwrite_what_was_trained() -> None:
    stages = [{"method": "linear"}, {"method": "finetune"}, {"method": "fisher"}]
    given = document(data={"evaluation": "e", "training": "t"}, stages=stages, guard="off")
    assert problems(given) == {"stages[1]": "recipe.overwritten_stage"}


def test_the_guard_is_on_where_data_takes_part_and_off_where_none_does() -> None:
    assert Recipe.from_document(document()).guard.mode == "best_on_holdout"
    assert Recipe.from_document({"sources": SOURCES, "stages": [{"method": "linear"}]}).guard.mode == "off"
    with_data = {"sources": SOURCES, "stages": [{"method": "linear"}], "data": {"holdout": "h"}}
    assert Recipe.from_document(with_data).guard.mode == "best_on_holdout"
    empty = {"sources": SOURCES, "stages": [{"method": "linear"}], "data": {"holdout": None}, "guard": None}
    assert Recipe.from_document(empty).guard.mode == "off"


def test_the_guard_is_a_word_or_a_mapping() -> None:
    word = Recipe.from_document(document(guard="report"))
    mapping = Recipe.from_document(document(guard={"mode": "report", "criterion": "calibrated_loss"}))
    assert word == mapping


def test_a_stage_that_the_next_one_overwrites_is_refused_without_a_guard() -> None:
    given = document(stages=[{"method": "linear"}, {"method": "fisher"}], guard="off")
    assert problems(given) == {"stages[0]": "recipe.overwritten_stage"}
    assert Recipe.from_document(given | {"guard": "report"}).stages[0].method == "linear"


def test_the_shorthand_stands_for_the_methods_usual_stages() -> None:
    short = {"sources": SOURCES, "data": DATA, "method": "cogram"}
    long = document(stages=[{"method": "fisher"}, {"method": "cogram"}])
    assert Recipe.from_document(short) == Recipe.from_document(long)
    short["method"] = "linear"
    assert [stage.method for stage in Recipe.from_document(short).stages] == ["linear"]


def test_a_refining_first_stage_starts_from_fisher() -> None:
    recipe = Recipe.from_document(document(stages=[{"method": "cogram", "granularity": "neuron"}]))
    assert [stage.method for stage in recipe.stages] == ["fisher", "cogram"]
    assert recipe.stages[1].parameters["granularity"] == "neuron"


def test_a_stage_is_named_by_its_place_in_the_document_not_after_expansion() -> None:
    given = document(stages=[{"method": "cogram", "tau_min": -1}])
    assert problems(given) == {"stages[0].tau_min": "recipe.invalid_value"}


def test_method_and_stages_together_are_refused() -> None:
    assert problems(document(method="linear")) == {"method": "recipe.conflict"}
    assert problems(document(method="linear", stages=[])) == {
        "method": "recipe.conflict",
        "stages": "recipe.invalid_value",
    }


def test_an_unknown_method_names_the_nearest() -> None:
    assert problems(document(stages=[{"method": "fischer"}])) == {"stages[0].method": "recipe.unknown_method"}
    assert "'fisher'" in messages(document(stages=[{"method": "fischer"}]))["stages[0].method"]
    given = {"sources": SOURCES, "data": DATA, "method": "cogrm"}
    assert problems(given) == {"method": "recipe.unknown_method"}
    assert "'cogram'" in messages(given)["method"]
    for method in (3, ["linear"], {"a": 1}, True, "x" * 10**6):
        assert problems({"sources": SOURCES, "data": DATA, "method": method}) == {"method": "recipe.unknown_method"}


@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"tau_min": "1"}, "tau_min"),
        ({"tau_max": "1"}, "tau_max"),
        ({"tau_min": True}, "tau_min"),
        ({"max_backtracks": 1.5}, "max_backtracks"),
        ({"max_backtracks": 1.0}, "max_backtracks"),
        ({"granularity": "weights"}, "granularity"),
        ({"steepness": "hard"}, "steepness"),
        ({"steepness": True}, "steepness"),
        ({"steepness": {"layer": -1}}, "steepness.layer"),
        ({"max_sweeps": 3}, "max_sweeps"),
        ({"max_sweeps": {"neuron": 1001}}, "max_sweeps.neuron"),
        ({"preset": ["paper"]}, "preset"),
        ({"extra_candidates": "current"}, "extra_candidates"),
        ({"extra_candidates": ["current", "current"]}, "extra_candidates"),
        ({"extra_candidates": ["base"]}, "extra_candidates[0]"),
        ({"time_budget": 0}, "time_budget"),
        ({"max_decisions": 0}, "max_decisions"),
        ({"prototypes": {"weighted": 1}}, "prototypes.weighted"),
        ({"prototypes": None}, "prototypes"),
        ({"tolerance": 1}, "tolerance"),
        ({"min_gain": float("nan")}, "min_gain"),
        ({"tau_max": float("inf")}, "tau_max"),
    ],
)
def test_a_wrong_parameter_is_told_at_its_place(parameters: dict[str, Any], place: str) -> None:
    given = document(stages=[{"method": "fisher"}, {"method": "cogram", **parameters}])
    assert problems(given) == {f"stages[1].{place}": "recipe.invalid_value"}


def test_a_wrong_parameter_is_told_in_words_that_say_what_it_takes() -> None:
    stage = {"method": "cogram", "steepness": "hard", "tau_max": "1", "granularity": "weights", "tolerance": 1}
    assert messages(document(stages=[stage])) == {
        "stages[0].steepness": "must be a mapping with the keys layer, neuron, weight "
        "or a number at least 0 and at most 1e+12; here 'hard'",
        "stages[0].tau_max": "must be a number at least 0 or null; here '1'",
        "stages[0].granularity": "must be one of 'layer', 'neuron', 'weight'; here 'weights'",
        "stages[0].tolerance": "must be a number at least 0 and less than 1; here 1",
    }


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    given = document(stages=[{"method": "cogram", "tau_min": 0.3, "tau_max": 0.1}])
    assert problems(given) == {"stages[0].tau_min": "recipe.wrong_order"}
    assert messages(given)["stages[0].tau_min"] == (
        "tau_min (0.3) is above tau_max (0.1); exchange them or raise tau_max"
    )
    for high in (0.3, None):
        stage = {"method": "cogram", "refinement": "thresholds", "tau_min": 0.3, "tau_max": high}
        Recipe.from_document(document(stages=[stage]))


THRESHOLDS = {"refinement": "thresholds"}


@pytest.mark.parametrize(
    ("parameters", "places"),
    [
        ({"tau_min": 0.1}, ["tau_min"]),
        ({"tau_max": 1.0, "tau_scale": "absolute"}, ["tau_max", "tau_scale"]),
        ({"tau": "auto"}, ["tau"]),
        ({"preset": "paper", "refinement": "passes", "tau_min": 0.2}, ["tau_min"]),
        ({**THRESHOLDS, "tau": "auto", "tau_min": 0.1, "tau_max": 0.2}, ["tau_min", "tau_max"]),
        ({"step": "full", "max_backtracks": 3}, ["max_backtracks"]),
        ({"preset": "paper", "max_backtracks": 3}, ["max_backtracks"]),
        ({"prototypes": {"kind": "all", "per_class": 3}}, ["prototypes.per_class"]),
        (
            {"prototypes": {"kind": "all", "per_class": 3, "weighted": True}},
            ["prototypes.per_class", "prototypes.weighted"],
        ),
        ({"prototypes": {"weighted": True}}, ["prototypes.weighted"]),
    ],
)
def test_a_parameter_that_changes_nothing_is_refused_with_the_remedy(
    parameters: dict[str, Any], places: list[str]
) -> None:
    given = document(stages=[{"method": "fisher"}, {"method": "cogram", **parameters}])
    assert problems(given) == {f"stages[1].{place}": "recipe.unused_parameter" for place in places}
    for place, message in messages(given).items():
        assert message.endswith(f"or take {place.rpartition('.')[2]} out")


@pytest.mark.parametrize(
    "parameters",
    [
        {"tau_min": 0.0, "tau_max": None, "tau": "given"},
        {"max_backtracks": 2, "step": "full"},
        {"preset": "paper", "tau_min": 0.2, "tau_max": 0.4, "tau_scale": "share"},
        {"preset": "paper", "refinement": "passes"},
        {**THRESHOLDS, "tau": "auto", "tau_scale": "absolute"},
        {"prototypes": {"kind": "all", "per_class": None, "weighted": False}},
        {"prototypes": {"per_class": 3, "weighted": True}},
        {"prototypes": {"kind": "examples", "weighted": True}},
    ],
)
def test_defaults_and_parameters_that_change_something_are_taken(parameters: dict[str, Any]) -> None:
    Recipe.from_document(document(stages=[{"method": "fisher"}, {"method": "cogram", **parameters}]))


def test_a_stage_with_everything_written_out_is_taken_so_that_old_traces_replay() -> None:
    recipe = Recipe.from_document(document()).to_document()
    recipe["stages"][1] |= {"tau_min": 0.1, "tau": "auto"}
    assert Recipe.from_document(recipe).to_document() == recipe


def test_a_stage_that_trains_for_no_epochs_is_refused() -> None:
    stages = [{"method": "linear"}, {"method": "finetune", "kickoff_epochs": 0, "epochs": 0}]
    given = document(data={**DATA, "training": "t"}, stages=stages)
    assert problems(given) == {"stages[1]": "recipe.idle_stage"}
    for some in ({"epochs": 1}, {"kickoff_epochs": 1}):
        Recipe.from_document(given | {"stages": [stages[0], stages[1] | some]})


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"granularity": None}, {"granularity": "must be one of 'layer', 'neuron', 'weight'; here null"}),
        ({"extra_candidates": [1]}, {"extra_candidates[0]": "must be one of 'current', 'average'; here 1"}),
        (
            {"extra_candidates": ["current", "base", "current"]},
            {
                "extra_candidates[1]": "must be one of 'current', 'average'; here 'base'",
                "extra_candidates": "has 'current' more than once; once is enough",
            },
        ),
    ],
)
def test_one_fault_is_told_once(parameters: dict[str, Any], expected: dict[str, str]) -> None:
    given = document(stages=[{"method": "cogram", **parameters}])
    with pytest.raises(RecipeError) as caught:
        Recipe.from_document(given)
    told = [(problem.location, problem.message) for problem in caught.value.problems]
    assert sorted(told) == sorted((f"stages[0].{place}", message) for place, message in expected.items())


def test_a_guard_of_no_kind_is_told_which_there_are() -> None:
    (message,) = messages(document(guard=False)).values()
    assert message == "must be best_on_holdout, report or off, or a mapping with the keys mode and criterion"


def test_all_problems_of_a_bad_document_are_listed_at_once() -> None:
    given = {
        "version": 2,
        "sources": [{"name": "a", "checkpoint": "a", "wieght": 2}],
        "base": "./base",
        "network": {"kind": "sequential", "layers": [{"type": "lineer"}, {"type": "Linear", "in_features": 0}, 7]},
        "data": {"evaluation": 3},
        "stages": [
            {"method": "fisher", "examples": 0},
            {"method": "cogrm"},
            {"method": "cogram", "tau_min": 2, "tau_max": 1},
        ],
        "output": {"max_shard_bytes": "big"},
        "sead": 1,
    }
    assert problems(given) == {
        "version": "recipe.invalid_value",
        "sources[0].wieght": "recipe.unknown_key",
        "sources": "recipe.too_few_sources",
        "base": "recipe.unused_base",
        "network.layers[0]": "recipe.invalid_value",
        "network.layers[1].in_features": "recipe.invalid_value",
        "network.layers[1].out_features": "recipe.missing_key",
        "network.layers[2]": "recipe.invalid_value",
        "data.evaluation": "recipe.invalid_value",
        "data.holdout": "recipe.missing_holdout",
        "stages[0].examples": "recipe.invalid_value",
        "stages[1].method": "recipe.unknown_method",
        "stages[2].tau_min": "recipe.wrong_order",
        "output.max_shard_bytes": "recipe.invalid_value",
        "sead": "recipe.unknown_key",
    }


def test_a_mistyped_key_is_not_reported_as_missing_too() -> None:
    given = document(data={"evaluatoin": "e", "holdot": "h"})
    assert problems(given) == {"data.evaluatoin": "recipe.unknown_key", "data.holdot": "recipe.unknown_key"}
    given = document(data={"evaluation": "e"}, gaurd="off")
    assert problems(given) == {"gaurd": "recipe.unknown_key"}


@pytest.mark.parametrize("given", [None, [], "recipe", 3, [{"sources": []}]])
def test_what_is_no_mapping_is_refused(given: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_document(given)
    assert caught.value.problems[0].code == "recipe.syntax"


def test_a_mistyped_stages_is_named_first_and_what_is_in_it_is_checked() -> None:
    sources = [{"name": name, "checkpoint": name} for name in "ab"]
    with pytest.raises(RecipeError) as caught:
        Recipe.from_document(
            {"sources": sources, "stagees": [{"method": "liner"}, {"method": "linear", "normalise": 1}]}
        )
    found = {problem.location: problem.code for problem in caught.value.problems}
    assert next(iter(found.items())) == ("stagees", "recipe.unknown_key")
    assert found["stages[0].method"] == "recipe.unknown_method"
    assert found["stages[1].normalise"] == "recipe.unknown_key"


@pytest.mark.parametrize("reference", [2, 99, "c", ""])
def test_a_reference_that_is_none_of_the_sources_is_refused(reference: object) -> None:
    given = document(stages=[{"method": "align", "reference": reference}, {"method": "linear"}])
    assert problems(given) == {"stages[0].reference": "recipe.unknown_reference"}
    assert "0 (a), 1 (b)" in messages(given)["stages[0].reference"]


@pytest.mark.parametrize("reference", [0, 1, "a", "b"])
def test_a_reference_is_a_source_by_place_or_name(reference: object) -> None:
    given = document(stages=[{"method": "align", "reference": reference}, {"method": "linear"}])
    assert Recipe.from_document(given).stages[0].parameters["reference"] == reference
