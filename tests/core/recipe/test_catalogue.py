from __future__ import annotations

import json
import pkgutil
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import cogram_core.methods
from cogram_core.methods import METHODS
from cogram_core.methods.catalogue import PATH, build
from cogram_core.methods.contract import MethodParams, parse_params
from cogram_core.recipe.methods import catalogue, check_parameters, with_defaults
from tests.core.recipe.documents import stages

SUPPORT = {"contract", "catalogue"}

anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats(-2, 1500, allow_nan=False)
    | st.sampled_from(["layer", "neuron", "units", "flat", "all", "fine", "full", "passes", "geometric", "1", ""])
    | st.sampled_from(["paper", "current", "average", "auto", "share", "blockwise"]),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from(["layer", "neuron", "kind", "per_class", "weighted", "x"]), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def test_the_table_of_methods_is_the_folder() -> None:
    found = {module.name for module in pkgutil.iter_modules(cogram_core.methods.__path__)}
    assert found - SUPPORT == set(METHODS)
    assert all(method.name == name for name, method in METHODS.items())


def test_the_committed_catalogue_is_not_stale() -> None:
    assert json.loads(PATH.read_text(encoding="utf-8")) == build(), "run `make catalogue`"


def test_every_method_says_what_it_does_and_where_it_comes_from() -> None:
    for entry in build()["methods"]:
        assert entry["summary"]
        assert entry["formula"]
        assert entry["source"], entry["name"]
        for name, parameter in entry["parameters"]["properties"].items():
            assert parameter.get("description"), f"{entry['name']}.{name}"


def test_the_catalogues_defaults_are_the_methods_own() -> None:
    for name, method in METHODS.items():
        assert parse_params(method, with_defaults(catalogue()[name], {})) == method.params()


@settings(deadline=None, max_examples=150)
@given(stage=stages)
def test_what_the_catalogue_completes_the_method_understands_alike(stage: dict[str, Any]) -> None:
    name = stage["method"]
    given = {key: value for key, value in stage.items() if key != "method"}
    assert check_parameters(catalogue()[name], given, "") == []
    completed = with_defaults(catalogue()[name], given)
    assert parse_params(METHODS[name], completed) == parse_params(METHODS[name], given)
    assert with_defaults(catalogue()[name], completed) == completed


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_the_catalogue_accepts_what_the_method_accepts(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(METHODS)))
    fields = sorted(METHODS[name].params.model_fields)
    given = data.draw(st.dictionaries(st.sampled_from([*fields, "unknown"]), anything, max_size=2))
    accepted = not check_parameters(catalogue()[name], given, "")
    assert accepted == (_strictly_valid(METHODS[name].params, given)), given


def _strictly_valid(params: type[MethodParams], given: dict[str, Any]) -> bool:
    """As JSON is validated: no text for a number, no truth value for one."""
    try:
        params.model_validate_json(json.dumps(given, default=str), strict=True)
    except ValidationError:
        return False
    return True


def test_completing_parameters_never_hands_out_the_catalogues_own_objects() -> None:
    entry = catalogue()["cogram"]
    with_defaults(entry, {})["max_sweeps"]["layer"] = 999
    assert with_defaults(entry, {})["max_sweeps"]["layer"] == 5
