"""A recipe from the wire: JSON or YAML in, plain data out, nothing that could hurt further on."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, NoReturn

import anyio
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from app.errors import TooLarge, summary
from app.fusions.errors import NotARecipe, RecipeUnreadable
from app.settings import Settings
from cogram_core.errors import Problem, RecipeError
from cogram_core.recipe import Recipe
from cogram_core.recipe.reading import read_text

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)  # one that is never closed reaches to the end
_NO_BRACKETS = re.compile(r"[^\[\]{}]+")
_YAML = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})
_SCHEMA = {"schema": {"$ref": "#/components/schemas/Recipe"}}
RECIPE_BODY = {  # for OpenAPI
    "requestBody": {"required": True, "content": {"application/json": _SCHEMA, "application/yaml": _SCHEMA}}
}


async def read_document(request: Request) -> Mapping[str, Any]:
    """The body as plain data.

    Raises:
        NotARecipe: for another media type.
        RecipeUnreadable: with the place of the syntax error.
        TooLarge: for YAML that would take long to read.
    """
    media = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media not in _YAML and media != "application/json":
        raise NotARecipe(f"Content-Type {media or 'is missing'}: send application/json or application/yaml.")
    body = await request.body()
    settings: Settings = request.app.state.context.settings
    if media == "application/json":
        return await run_in_threadpool(_parse, body, True, settings.max_json_depth)
    if len(body) > settings.max_yaml_bytes:
        raise TooLarge(
            f"A recipe in YAML has at most {settings.max_yaml_bytes} bytes here (COGRAM_MAX_YAML_BYTES); send it as JSON."
        )
    # One at a time: to read YAML takes a thousand times as long as JSON, and all threads share one interpreter.
    async with request.app.state.yaml_reader:
        return await run_in_threadpool(_parse, body, False, settings.max_json_depth)


def yaml_reader() -> anyio.CapacityLimiter:
    """Who reads YAML in one API process."""
    return anyio.CapacityLimiter(1)


def recipe_schemas() -> dict[str, Any]:
    """What ``RECIPE_BODY`` refers to."""
    schema = Recipe.model_json_schema(ref_template="#/components/schemas/{model}")
    parts = schema.pop("$defs", {})
    return {"Recipe": schema, **parts}


def _parse(body: bytes, is_json: bool, depth: int) -> Mapping[str, Any]:
    try:
        text = body.decode("utf-8")
        if is_json and (found := _nesting(text)) > depth:
            _unreadable(f"is nested {found} deep; at most {depth} are taken (COGRAM_MAX_JSON_DEPTH)")
        document = _parse_json(text) if is_json else read_text(text, "recipe")
        # What the database can't hold as text: lone surrogates and NUL.
        if "\x00" in json.dumps(document, ensure_ascii=False, default=str).encode().decode().replace("\\u0000", "\x00"):
            _unreadable("has a NUL character in it")
    except RecipeError as error:
        raise RecipeUnreadable(summary(error.problems), errors=error.problems) from error
    except (UnicodeError, RecursionError, ValueError) as error:
        _unreadable(f"is not well-formed: {error}", error)
    return document


def _nesting(text: str) -> int:
    """How deep brackets stand in brackets; those in strings don't count."""
    brackets = _NO_BRACKETS.sub("", _STRINGS.sub("", text))
    return max(accumulate(1 if bracket in "[{" else -1 for bracket in brackets), default=0)


def _parse_json(text: str) -> Mapping[str, Any]:
    document = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    if not isinstance(document, dict):
        raise ValueError("a recipe is an object with the keys sources and stages")
    return document


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON; write null for no limit")


def _unreadable(fault: str, cause: Exception | None = None) -> NoReturn:
    message = f"The recipe {fault}"
    raise RecipeUnreadable(message, errors=[Problem("recipe", RecipeUnreadable.code, message)]) from cause
