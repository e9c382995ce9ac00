"""Checks a stage's parameters against the committed catalogue of methods, without importing any method."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from cogram_core.errors import Problem
from cogram_core.recipe.suggest import did_you_mean
from cogram_core.recipe.wording import shown

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator


@dataclass(frozen=True)
class MethodEntry:
    """What the catalogue says of one method."""

    name: str
    kind: str  # choosing | aligning | merging | refining | training
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
    return Problem(location, "recipe.unknown_method", f"there is no method {shown(name)}; {hint}")


def check_parameters(entry: MethodEntry, parameters: Mapping[str, Any], location: str) -> list[Problem]:
    """All that is wrong with a stage's parameters."""
    errors = parameter_validator()(entry.schema).iter_errors(dict(parameters))
    # A value of the wrong type is none of an enumeration's either: two faults, one sentence.
    problems = list(dict.fromkeys(problem for error in errors for problem in _as_problems(error, entry, location)))
    faulty = {problem.location for problem in problems}
    return problems + list(_order_problems(entry.schema, with_defaults(entry, parameters), location, faulty))


@cache
def parameter_validator() -> type[Validator]:
    """JSON Schema's, but for one thing: that takes 1.0 for a whole number, and the rest of a recipe doesn't."""
    # Slow to load: spent with the first recipe, or by who has the time before, not in the API's start.
    from jsonschema import Draft202012Validator, validators

    whole = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    extended: type[Validator] = validators.extend(Draft202012Validator, type_checker=whole)  # type: ignore[no-untyped-call]
    return extended


def with_defaults(entry: MethodEntry, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with every default written out, inside parameters that are mappings as well."""
    preset = parameters.get("preset")
    changed = entry.schema.get("x-presets", {}).get(preset, {}) if isinstance(preset, str) else {}
    return _filled(entry.schema, {**changed, **parameters}, entry.schema.get("$defs", {}))


def _filled(schema: Mapping[str, Any], values: Mapping[str, Any], models: Mapping[str, Any]) -> dict[str, Any]:
    filled = {}
    for key, spec in schema["properties"].items():
        value = deepcopy(values.get(key, spec["default"]))
        inner = next((models[name] for name in _references(spec)), None)
        filled[key] = _filled(inner, value, models) if inner is not None and isinstance(value, dict) else value
    return filled


def _references(spec: Mapping[str, Any]) -> Iterator[str]:
    """Names of the models that a parameter may be."""
    for choice in (spec, *spec.get("anyOf", ())):
        if "$ref" in choice:
            yield choice["$ref"].rpartition("/")[2]


def _as_problems(error: ValidationError, entry: MethodEntry, location: str) -> Iterator[Problem]:
    schema: Any = error.schema
    instance: Any = error.instance
    place = location + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
    models = entry.schema.get("$defs", {})
    match error.validator:
        case "additionalProperties":
            known = schema["properties"]
            whose = entry.name if place == location else place.removeprefix(f"{location}.")
            for key in sorted(set(instance) - set(known)):
                message = f"{whose} has no parameter {shown(key)}; {did_you_mean(key, known)}"
                yield Problem(f"{place}.{key}", "recipe.unknown_key", message)
        case "uniqueItems":
            twice = next(value for place, value in enumerate(instance) if value in instance[:place])
            yield Problem(place, "recipe.invalid_value", f"has {shown(twice)} more than once; once is enough")
        case "anyOf":
            yield from _choice_problems(error, entry, location, place)
        case _:
            message = f"must be {_described(schema, models)}; here {shown(error.instance)}"
            yield Problem(place, "recipe.invalid_value", message)


def _choice_problems(error: ValidationError, entry: MethodEntry, location: str, place: str) -> Iterator[Problem]:
    """A mapping was meant for the choice that is one, and its faults are told; for anything else all choices are."""
    models = entry.schema.get("$defs", {})
    inner = [fault for fault in error.context or () if fault.validator != "type" or len(fault.path) > 0]
    if isinstance(error.instance, dict) and inner:
        for fault in inner:
            yield from _as_problems(fault, entry, location)
        return
    schema: Any = error.schema
    choices = " or ".join(_described(choice, models) for choice in schema["anyOf"])
    yield Problem(place, "recipe.invalid_value", f"must be {choices}; here {shown(error.instance)}")


_TYPES = {
    "number": "a number",
    "integer": "a whole number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a mapping",
}
_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "greater than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def _described(schema: Mapping[str, Any], models: Mapping[str, Any]) -> str:
    """What a schema takes, in words."""
    if "$ref" in schema:
        return _described(models[schema["$ref"].rpartition("/")[2]], models)
    if "enum" in schema:
        return "one of " + ", ".join(map(shown, schema["enum"]))
    if "const" in schema:
        return shown(schema["const"])
    if schema["type"] == "object":
        return "a mapping with the keys " + ", ".join(schema["properties"])
    if schema["type"] == "array":
        distinct = "different values" if schema.get("uniqueItems") else "values"
        return f"a list of {distinct}, each {_described(schema['items'], models)}"
    limits = [f"{word} {schema[limit]:g}" for limit, word in _LIMITS.items() if limit in schema]
    return " ".join([_TYPES[schema["type"]], " and ".join(limits)]).strip()


def _order_problems(
    schema: Mapping[str, Any], values: Mapping[str, Any], location: str, faulty: Set[str]
) -> Iterator[Problem]:
    """``x-ascending`` lists pairs of parameters whose values may not fall; null stands for no limit."""
    for low, high in schema.get("x-ascending", ()):
        if faulty & {f"{location}.{low}", f"{location}.{high}"} or values[low] is None or values[high] is None:
            continue
        if values[low] > values[high]:
            message = f"{low} ({values[low]}) is above {high} ({values[high]}); exchange them or raise {high}"
            yield Problem(f"{location}.{low}", "recipe.wrong_order", message)
