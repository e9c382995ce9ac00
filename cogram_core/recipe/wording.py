"""What pydantic found wrong with a recipe, in words for its author: the place in the document, and the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cogram_core.errors import Problem
from cogram_core.recipe.suggest import did_you_mean

_SHOWN = 60
WORDS = {
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long, {max_length} characters at most",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "tuple_type": "must be a list",
    "too_short": "needs {min_length} or more entries",
    "too_long": "has more than {max_length} entries",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}
_KINDS = {"auto", "sequential", "transformers"}  # of networks
_NO_VALUE = {
    "too_short",
    "too_long",
    "string_too_short",
    "string_too_long",
    "value_error",
    "union_tag_not_found",
    "union_tag_invalid",
}


def shown(value: Any) -> str:
    """A value as it may stand in a message."""
    if isinstance(value, Mapping | list | tuple):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    # As it is written in a recipe: true and null, not Python's True and None.
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def place_of(path: Iterable[int | str]) -> str:
    """``sources[0].name`` for its parts."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def as_problems(
    error: ValidationError, document: Any, model: type[BaseModel], code: str, patterns: Mapping[str, str]
) -> list[Problem]:
    """One problem for each thing that is wrong.

    Args:
        error: what pydantic found in the document.
        document: as it was given.
        model: what it should have been.
        code: the first part of the problems' codes.
        patterns: words for each regular expression that a field has to match.
    """
    return list(_Wording(document, model, code, patterns).problems(error))


class _Wording:
    def __init__(self, document: Any, model: type[BaseModel], code: str, patterns: Mapping[str, str]) -> None:
        self._document = document
        self._model = model
        self._code = code
        self._patterns = patterns
        # Asked for once: there may be as many problems as a document has keys.
        self._tags = {*_KINDS, *(tag for each in _models_in(model) for tag in _type_of(each))}

    def problems(self, error: ValidationError) -> Iterator[Problem]:
        details = error.errors(include_url=False)
        choices: dict[tuple[int | str, ...], list[str]] = {}
        for detail in details:
            if detail["type"] == "too_short" and any(_inside(other["loc"], detail["loc"]) for other in details):
                continue  # the list has entries, and what is wrong with them is told
            path, of_choice = self._path(detail["loc"])
            if of_choice:
                choices.setdefault(path, []).append(self._words(detail))
            else:
                yield self._problem(path, detail)
        for path, words in choices.items():
            message = ", or ".join(dict.fromkeys(words)) + f"; here {shown(_at(self._document, path))}"
            yield Problem(place_of(path), f"{self._code}.invalid_value", message)

    def _problem(self, path: tuple[int | str, ...], detail: Any) -> Problem:
        place = place_of(path)
        match detail["type"]:
            case "extra_forbidden":
                hint = did_you_mean(str(path[-1]), _keys_at(self._model, detail["loc"][:-1]))
                return Problem(place, f"{self._code}.unknown_key", f"unknown key {shown(path[-1])}; {hint}")
            case "missing":
                return Problem(place, f"{self._code}.missing_key", "is required; add it")
            case kind:
                here = "" if kind in _NO_VALUE else f"; here {shown(detail['input'])}"
                return Problem(place, f"{self._code}.invalid_value", self._words(detail) + here)

    def _words(self, detail: Any) -> str:
        context = detail.get("ctx", {})
        match detail["type"]:
            case "value_error":
                return str(context["error"])
            case "string_pattern_mismatch":
                return self._patterns[context["pattern"]]
            case "union_tag_invalid":
                known = [tag.strip().strip("'") for tag in context["expected_tags"].split(",")]
                return f"there is no layer type {shown(context['tag'])}; {did_you_mean(context['tag'], known)}"
            case "union_tag_not_found":
                return "has no layer type; add one, such as type: linear"
            case kind if kind in WORDS:
                return WORDS[kind].format(**context)
            case _:
                return str(detail["msg"])

    def _path(self, loc: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], bool]:
        """The place in the document, and whether it was left at a choice between several types of value.

        Pydantic puts the names of the types that it tried between the keys; those of layers and networks are passed
        over, any other one means that no type of a choice fitted.
        """
        path: list[int | str] = []
        value = self._document
        for place, part in enumerate(loc):
            last = place == len(loc) - 1
            if isinstance(value, Mapping) and (part in value or (last and part not in self._tags)):
                value = value.get(part)
            elif isinstance(value, list) and isinstance(part, int):
                value = value[part] if part < len(value) else None
            elif part in self._tags:
                continue
            else:
                return tuple(path), True
            path.append(part)
        return tuple(path), False


def _inside(loc: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _at(value: Any, path: Iterable[int | str]) -> Any:
    for part in path:
        value = value[part]
    return value


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> set[str]:
    """The keys that are known where an unknown one was found."""
    models: list[type[BaseModel]] = [model]
    for part in loc:
        if isinstance(part, int) or part in _KINDS:
            continue
        tagged = [inner for inner in models if part in _type_of(inner)]
        models = tagged or [found for inner in models for found in _field_models(inner, part)]
    return {key for inner in models for key in inner.model_fields}


def _field_models(model: type[BaseModel], field: str) -> list[type[BaseModel]]:
    return list(_models_of(model.model_fields[field].annotation)) if field in model.model_fields else []


def _models_in(model: type[BaseModel]) -> set[type[BaseModel]]:
    """The model and all models of its fields, however deep; layers may hold layers."""
    found: set[type[BaseModel]] = set()
    left = [model]
    while left:
        if (next_model := left.pop()) not in found:
            found.add(next_model)
            left += [inner for field in next_model.model_fields for inner in _field_models(next_model, field)]
    return found


def _models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for inner in get_args(annotation):
        yield from _models_of(inner)


def _type_of(model: type[BaseModel]) -> tuple[Any, ...]:
    """The words that choose this model in a tagged union."""
    field = model.model_fields.get("type")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return get_args(field.annotation)
