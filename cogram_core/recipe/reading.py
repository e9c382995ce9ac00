"""A recipe's text as plain data: JSON, or YAML as its version 1.2 reads it, so that both are one model.

PyYAML by itself follows YAML 1.1, where ``off`` is false, ``1e-3`` is text and ``1:30`` is ninety.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import yaml

from cogram_core.errors import Problem, RecipeError

_MAX_DEPTH = 32
_MAX_KEYS = 10_000
_TAG = "tag:yaml.org,2002:"
_WORDS: Mapping[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}


def read_text(text: str, place: str) -> Mapping[str, Any]:
    """A YAML or JSON text as plain data.

    Raises:
        RecipeError: with the line and column of a syntax error.
    """
    try:
        document = _parse(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{place}:{mark.line + 1}:{mark.column + 1}" if mark else place
        raise RecipeError([Problem(where, "recipe.syntax", f"not valid YAML or JSON: {error.problem}")]) from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError([Problem(place, "recipe.syntax", f"not valid YAML or JSON: {error}")]) from error
    if not isinstance(document, Mapping):
        raise RecipeError([Problem(place, "recipe.syntax", "a recipe is a mapping with the keys sources and stages")])
    return document


def _parse(text: str) -> Any:
    """JSON as JSON, for YAML refuses its tabs and splits its surrogate pairs; everything else as YAML."""
    try:
        return json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError:
        return yaml.load(text, _Loader)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} stands twice")
    return found


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain data and nothing else: no aliases, which can explode, no dates, no binary, no merge keys."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _refused("aliases are not accepted", self.peek_event())  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def _refused(problem: str, node: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)


def _mapping(loader: _Loader, node: yaml.Node) -> dict[str, Any]:
    """Keys are taken as they are written and stand once each, where plain YAML would let the last one win."""
    if not isinstance(node, yaml.MappingNode):
        raise _refused("is no mapping", node)
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _refused("a key has to be text", key)
        if key.value in found:
            raise _refused(f"the key {key.value!r} stands twice", key)
        found[key.value] = loader.construct_object(value, deep=True)
    return found


def _list(loader: _Loader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise _refused("is no list", node)
    return [loader.construct_object(value, deep=True) for value in node.value]


def _unknown(_: _Loader, node: yaml.Node) -> NoReturn:
    raise _refused(f"the tag {node.tag} is not accepted", node)


def _scalar(convert: Callable[[str], Any]) -> Callable[[_Loader, yaml.Node], Any]:
    def construct(_: _Loader, node: yaml.Node) -> Any:
        try:
            return convert(node.value)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _refused(f"{str(node.value)[:40]!r} is not what its tag {node.tag} says", node) from error

    return construct


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


# The core schema of YAML 1.2: which plain words are not text, the characters they begin with, and how each is read.
_CORE: tuple[tuple[str, str, list[str], Callable[[str], Any]], ...] = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""], lambda text: _WORDS[text.lower()]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: _WORDS[text.lower()]),
    ("int", r"[-+]?[0-9]+", list("-+0123456789"), int),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789"), _number),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+."), _number),
)


def _resolve(taught: type[_Loader | _Dumper]) -> None:
    for name, pattern, first, _ in _CORE:
        taught.add_implicit_resolver(_TAG + name, re.compile(rf"(?:{pattern})\Z"), first)


def _teach(loader: type[_Loader]) -> None:
    loader.yaml_constructors = {}
    loader.yaml_implicit_resolvers = {}
    _resolve(loader)
    for name, _, _, convert in _CORE:
        loader.add_constructor(_TAG + name, _scalar(convert))
    loader.add_constructor(None, _unknown)  # else a node of any tag would be read as what it looks like
    loader.add_constructor(_TAG + "str", _scalar(lambda text: text + ""))
    loader.add_constructor(_TAG + "seq", _list)
    loader.add_constructor(_TAG + "map", _mapping)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else: PyYAML alone leaves ``0E0`` bare."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def write_text(document: Mapping[str, Any]) -> str:
    """Plain data as YAML that ``read_text`` gives back."""
    # Escaped, for PyYAML writes some line breaks of Unicode so that they aren't read as they were.
    text: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False)
    return text


_teach(_Loader)
_resolve(_Dumper)


def plain(value: Any, location: str = "", depth: int = 0) -> tuple[Any, list[Problem]]:
    """A document as JSON could hold it, and what in it JSON could not; paths of Python callers become text."""
    if isinstance(value, Mapping):
        return _plain_mapping(value, location, depth)
    if isinstance(value, list | tuple):
        parts = [plain(inner, f"{location}[{place}]", depth + 1) for place, inner in enumerate(_to(depth, value))]
        problems = [problem for _, found in parts for problem in found]
        return [inner for inner, _ in parts], problems + _too_deep(location, depth)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return value, [Problem(location, "recipe.invalid_value", fault)] if (fault := _fault(value)) else []


def _plain_mapping(value: Mapping[Any, Any], location: str, depth: int) -> tuple[dict[str, Any], list[Problem]]:
    if len(value) > _MAX_KEYS:
        message = f"has {len(value)} keys, and at most {_MAX_KEYS} are read; nothing here needs more"
        return {}, [Problem(location, "recipe.too_many_keys", message)]
    document, problems = {}, _too_deep(location, depth)
    for key, inner in _to(depth, value.items()):
        if not isinstance(key, str) or (fault := _fault(key)):
            fault = f"the key {key!r} has to be text" if not isinstance(key, str) else f"a key {fault}"
            problems.append(Problem(location, "recipe.unknown_key", fault))
            continue
        document[key], found = plain(inner, f"{location}.{key}" if location else key, depth + 1)
        problems += found
    return document, problems


def _to(depth: int, parts: Any) -> Any:
    return () if depth > _MAX_DEPTH else parts


def _too_deep(location: str, depth: int) -> list[Problem]:
    if depth <= _MAX_DEPTH:
        return []
    return [Problem(location, "recipe.too_deep", f"nested deeper than {_MAX_DEPTH} levels; nothing here needs that")]


def _fault(value: Any) -> str | None:
    if value is None or isinstance(value, bool | int):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{value} is not a finite number; write null for no limit"
    if not isinstance(value, str):
        return f"has the type {type(value).__name__}; write text, a number, true, false, null, a list or a mapping"
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        return "holds a character that is no text (NUL or half a surrogate pair); take it out"
    return None
