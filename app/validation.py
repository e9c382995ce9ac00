"""What pydantic finds wrong with a request, as problems: where it is, and in plain words what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import Request
from pydantic import BaseModel

from cogram_core.errors import Problem
from cogram_core.recipe.suggest import did_you_mean
from cogram_core.recipe.wording import WORDS

_WORDS = WORDS | {
    "int_parsing": "must be a whole number",
    "string_pattern_mismatch": "must match {pattern}",
    "enum": "must be {expected}",
}


def from_pydantic(entry: Mapping[str, Any], known: Iterable[str]) -> Problem:
    """The problem of one entry; ``known`` are the keys that the document may have."""
    if entry["type"] == "json_invalid":
        where, at = entry["loc"]  # a character, and no key
        error = entry["ctx"]["error"]
        return Problem(where, entry["type"], f"is not well-formed JSON at character {at}: {error}; correct it")
    *place, last = entry["loc"] or ("request",)
    parts = [str(part) for part in (*place, last)]
    location = ".".join(parts[1:] if parts[0] in {"body", "query", "path", "header"} and len(parts) > 1 else parts)
    return Problem(location, str(entry["type"]), _in_words(entry, str(last), known))


def _in_words(entry: Mapping[str, Any], name: str, known: Iterable[str]) -> str:
    """What is wrong and what to do about it; pydantic's own words where there are no better ones."""
    kind, context = entry["type"], entry.get("ctx", {})
    match kind:
        case "missing":
            return "is required; add it"
        case "extra_forbidden":
            return f"unknown key {name!r}; {did_you_mean(name, known)}"
        case "value_error":
            return str(context["error"])
        case _ if kind in _WORDS:
            return _WORDS[kind].format(**context)
        case _:
            return str(entry["msg"])


def body_keys(request: Request) -> list[str]:
    """The keys that the document of this call may have."""
    field = getattr(request.scope.get("route"), "body_field", None)
    model = field.field_info.annotation if field is not None else None
    return [*model.model_fields] if isinstance(model, type) and issubclass(model, BaseModel) else []
