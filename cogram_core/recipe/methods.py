"""Checks a stage's parameters against the committed catalogue of methods, without importing any method."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from cogram_core.errors import Problem
from cogram_core.recipe.suggest import did_you_mean


@dataclass(frozen=True)
class MethodEntry:
    """What the catalogue says of one method."""

    name: str
    kind: str  # merging | refining
    per_tensor: bool
    needs_data: bool
    needs_base: bool
    schema: Mapping[str, Any]


@cache
def catalogue() -> Mapping[str, MethodEntry]:
    """All methods by name."""
    document = json.loads((files("cogram_core") / "methods" / "catalogue.json").read_text())
    return {
        entry["name"]: MethodEntry(
            entry["name"],
            entry["kind"],
            entry["per_tensor"],
            entry["needs_data"],
            entry["needs_base"],
            entry["parameters"],
        )
        for entry in document["methods"]
    }


def unknown_method(name: str, location: str) -> Problem:
    """The problem that names the nearest method."""
    hint = did_you_mean(name, catalogue())
    return Problem(location, "recipe.unknown_method", f"there is no method {name!r}; {hint}")


def check_parameters(entry: MethodEntry, parameters: Mapping[str, Any], location: str) -> list[Problem]:
    """All that is wrong with a stage's parameters."""
    schema = entry.schema
    problems = [
        Problem(
            f"{location}.{key}",
            "recipe.unknown_key",
            f"{entry.name} has no parameter {key!r}; {did_you_mean(key, schema['properties'])}",
        )
        for key in parameters
        if key not in schema["properties"]
    ]
    known = {key: value for key, value in parameters.items() if key in schema["properties"]}
    validator = Draft202012Validator({key: value for key, value in schema.items() if key != "additionalProperties"})
    problems.extend(_as_problem(error, location) for error in validator.iter_errors(known))
    if not problems:
        problems.extend(_order_problems(schema, with_defaults(entry, parameters), location))
    return problems


def with_defaults(entry: MethodEntry, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with every default written out."""
    properties = entry.schema["properties"]
    return {key: parameters.get(key, spec["default"]) for key, spec in properties.items()}


def _as_problem(error: ValidationError, location: str) -> Problem:
    chosen = best_match([error]) or error
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in chosen.absolute_path)
    return Problem(location + place, "recipe.invalid_value", chosen.message)


def _order_problems(schema: Mapping[str, Any], values: Mapping[str, Any], location: str) -> Iterator[Problem]:
    """``x-ascending`` lists pairs of parameters whose values may not fall; null stands for no limit."""
    for low, high in schema.get("x-ascending", ()):
        if values[low] is not None and values[high] is not None and values[low] > values[high]:
            yield Problem(
                f"{location}.{low}",
                "recipe.wrong_order",
                f"{low} ({values[low]}) is above {high} ({values[high]}); exchange them or raise {high}",
            )
