"""Reads a recipe document: YAML or JSON in, a complete ``Recipe`` out, or one error with every problem in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from cogram_core.errors import Problem, RecipeError
from cogram_core.recipe.document import Recipe
from cogram_core.recipe.methods import catalogue, check_parameters, unknown_method, with_defaults
from cogram_core.recipe.rules import expand_shorthand, rule_problems, with_default_guard
from cogram_core.recipe.suggest import did_you_mean

_MAX_DEPTH = 32


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, where plain YAML would let the last one win, and aliases, which can explode."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases are not accepted", self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def read_text(text: str, place: str) -> Mapping[str, Any]:
    """A YAML or JSON text as plain data.

    Raises:
        RecipeError: with the line and column of a syntax error.
    """
    try:
        document = yaml.load(text, _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{place}:{mark.line + 1}:{mark.column + 1}" if mark else place
        raise RecipeError([Problem(where, "recipe.syntax", f"not valid YAML or JSON: {error.problem}")]) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError([Problem(place, "recipe.syntax", f"not valid YAML or JSON: {error}")]) from error
    if not isinstance(document, Mapping):
        raise RecipeError([Problem(place, "recipe.syntax", "a recipe is a mapping with the keys sources and stages")])
    return document


def load(path: Path) -> Recipe:
    """See ``Recipe.load``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(str(path), "recipe.unreadable", f"can't be read: {error}")]) from error
    recipe = parse(read_text(text, str(path)))
    folder = path.resolve().parent
    return recipe.with_references(
        {(ref.kind, ref.value): str((folder / Path(ref.value).expanduser()).resolve()) for ref in recipe.references()}
    )


def parse(document: Mapping[str, Any]) -> Recipe:
    """See ``Recipe.from_document``."""
    problems = list(_number_problems(document, ""))
    if problems:
        raise RecipeError(problems)
    expanded, problems = expand_shorthand(document)
    problems += _stage_problems(expanded)
    try:
        # Strict JSON validation takes a list for a tuple and an integer for a float, but never "1" for 1.
        recipe = Recipe.model_validate_json(json.dumps(with_default_guard(expanded), default=str))
    except ValidationError as error:
        raise RecipeError([*_as_problems(error), *problems]) from error
    if not problems:
        problems = rule_problems(recipe)
    if problems:
        raise RecipeError(problems)
    stages = tuple(
        stage.model_copy(update={"parameters": with_defaults(catalogue()[stage.method], stage.parameters)})
        for stage in recipe.stages
    )
    return recipe.model_copy(update={"stages": stages})


def _number_problems(value: Any, location: str, depth: int = 0) -> Iterator[Problem]:
    if depth > _MAX_DEPTH:
        yield Problem(location, "recipe.too_deep", f"nested deeper than {_MAX_DEPTH} levels")
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(location, "recipe.invalid_value", f"{value} is not a finite number; write null for no limit")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _number_problems(inner, f"{location}.{key}" if location else str(key), depth + 1)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _number_problems(inner, f"{location}[{place}]", depth + 1)


def _stage_problems(document: Mapping[str, Any]) -> list[Problem]:
    """Methods and their parameters, checked even where the rest of the document is wrong."""
    problems: list[Problem] = []
    stages = document.get("stages")
    for place, stage in enumerate(stages if isinstance(stages, list) else []):
        if not isinstance(stage, Mapping) or not isinstance(stage.get("method"), str):
            continue
        location = f"stages[{place}]"
        entry = catalogue().get(stage["method"])
        if entry is None:
            problems.append(unknown_method(stage["method"], f"{location}.method"))
        else:
            parameters = {key: value for key, value in stage.items() if key != "method"}
            problems += check_parameters(entry, parameters, location)
    return problems


def _as_problems(error: ValidationError) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        loc = _without_tags(detail["loc"])
        location = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
        if detail["type"] == "extra_forbidden":
            hint = did_you_mean(str(loc[-1]), _keys_at(detail["loc"][:-1]))
            yield Problem(location, "recipe.unknown_key", f"unknown key {loc[-1]!r}; {hint}")
        elif detail["type"] == "missing":
            yield Problem(location, "recipe.missing_key", "is required")
        else:
            yield Problem(location, "recipe.invalid_value", detail["msg"].removeprefix("Value error, "))


def _without_tags(loc: tuple[int | str, ...]) -> list[int | str]:
    """Drops pydantic's names of union members, which follow a list index or the word network."""
    tags = {"auto", "sequential", *(tag for model in _models_in(Recipe, "network") for tag in _type_of(model))}
    return [
        part
        for place, part in enumerate(loc)
        if not (place and part in tags and (isinstance(loc[place - 1], int) or loc[place - 1] == "network"))
    ]


def _keys_at(loc: tuple[int | str, ...]) -> set[str]:
    """The keys that are known where an unknown one was found."""
    models: list[type[BaseModel]] = [Recipe]
    for part in loc:
        if isinstance(part, int) or part in {"auto", "sequential"}:
            continue
        tagged = [model for model in models if part in _type_of(model)]
        models = tagged or [inner for model in models for inner in _models_in(model, part)]
    return {key for model in models for key in model.model_fields}


def _models_in(model: type[BaseModel], field: str) -> list[type[BaseModel]]:
    if field not in model.model_fields:
        return []
    return list(_models_of(model.model_fields[field].annotation))


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and get_origin(annotation) is None:
        yield annotation
        if "layers" in annotation.model_fields:
            yield from _models_of(annotation.model_fields["layers"].annotation)
        return
    for inner in get_args(annotation):
        yield from _models_of(inner)


def _type_of(model: type[BaseModel]) -> tuple[Any, ...]:
    """The words that choose this model in a tagged union."""
    field = model.model_fields.get("type")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return get_args(field.annotation)
