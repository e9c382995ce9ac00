"""Whatever JSON stands anywhere in a recipe, it is a recipe or a list of what is wrong; never another error."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cogram_core.errors import RecipeError
from cogram_core.recipe import Recipe
from cogram_core.recipe.methods import catalogue
from tests.core.recipe.documents import DATA, SOURCES

_WORDS = ["", "off", "report", "neuron", "paper", "all", "a", "é\ud800", "\x00", *catalogue()]
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(_WORDS) | st.text(max_size=8)
_ANYTHING = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS) | st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_GOOD: list[dict[str, Any]] = [
    {"sources": SOURCES, "data": DATA, "stages": [{"method": name} for name in catalogue()]},
    {
        "version": 1,
        "sources": [{**SOURCES[0], "data": "x", "weight": 2.0}, SOURCES[1]],
        "base": "x",
        "data": {**DATA, "training": "t"},
        "stages": [
            {"method": "cogram", "granularity": "neuron", "max_sweeps": {"layer": 1}, "prototypes": {"kind": "all"}}
        ],
        "guard": {"mode": "report", "criterion": "accuracy"},
        "seed": 1,
        "device": "cpu",
        "threads": 1,
    },
]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys."""
    if isinstance(value, dict):
        own = [(value, key) for key in value]
        return own + [place for inner in value.values() for place in _places(inner)]
    if isinstance(value, list):
        return [(value, key) for key in range(len(value))] + [place for inner in value for place in _places(inner)]
    return []


@st.composite
def _documents(draw: st.DrawFn) -> Any:
    document = copy.deepcopy(draw(st.sampled_from(_GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(_places(document)))
        if isinstance(container, dict) and draw(st.booleans()):
            container[draw(st.sampled_from([*_WORDS, "name", "checkpoint", "data", "method", "mode"]))] = draw(
                _ANYTHING
            )
        else:
            container[key] = draw(_ANYTHING)
    return document


@settings(max_examples=300, deadline=None)
@given(_documents() | _ANYTHING)
def test_whatever_stands_in_a_recipe_it_is_refused_in_order(document: Any) -> None:
    try:
        recipe = Recipe.from_document(document)
    except RecipeError as error:
        assert error.problems  # noqa: PT017 - either outcome is good
    else:
        assert Recipe.from_document(recipe.to_document()) == recipe
