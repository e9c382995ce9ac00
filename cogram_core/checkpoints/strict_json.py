"""JSON as untrusted files may hold it: size of every kind bounded before parsing, repeated keys kept visible.

The standard parser takes the last of two equal keys, NaN, and as much nesting and memory as it is given.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NoReturn

# One that is never closed matches up to the end, so that no text makes the search quadratic.
_STRING_WITHOUT_ESCAPES = re.compile(rb'"[^"]*+"?')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_MAX_DIGITS = 19


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most of each kind that a legal document can need; checked on the bytes, before any object is made."""

    depth: int
    objects: int
    arrays: int
    strings: int
    commas: int


class Malformed(Exception):
    """The document is refused: a stable code and a message for the problem that is reported."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class RepeatedKeys(dict[str, Any]):
    """An object in which ``repeated`` keys occur more than once; holds the last value of each."""

    repeated: tuple[str, ...] = ()


def parse_json(raw: bytes, bounds: Bounds) -> Any:
    """The document, with ``RepeatedKeys`` for objects that have any; linear in time and memory.

    Numbers that are no natural number of at most 19 digits come out as floats, which no count accepts.

    Raises:
        Malformed: with code ``too_many_values``, ``nesting``, ``encoding`` or ``json``.
    """
    _check_bounds(raw, bounds)
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object, parse_int=_natural, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError as error:
        raise Malformed("encoding", f"is not UTF-8 at byte {error.start}; write it again as UTF-8") from error
    except json.JSONDecodeError as error:
        text = f"is not valid JSON at character {error.pos}: {error.msg}; write the file again"
        raise Malformed("json", text) from error


def _check_bounds(raw: bytes, bounds: Bounds) -> None:
    unescaped = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    _check_count("strings", (unescaped.count(b'"') + 1) // 2, bounds.strings)
    skeleton = _STRING_WITHOUT_ESCAPES.sub(b"", unescaped)
    _check_count("objects", skeleton.count(b"{"), bounds.objects)
    _check_count("arrays", skeleton.count(b"["), bounds.arrays)
    _check_count("commas", skeleton.count(b","), bounds.commas)
    brackets = skeleton.translate(None, _NOT_BRACKETS)
    if len(brackets) > 2 * (bounds.objects + bounds.arrays):
        raise Malformed("json", "is not valid JSON: it closes more brackets than it opens; write the file again")
    depth = max(accumulate(_STEP[bracket] for bracket in brackets), default=0)
    if depth > bounds.depth:
        raise Malformed("nesting", f"is nested {depth} deep, more than the {bounds.depth} that a legal file can need")


def _check_count(kind: str, count: int, limit: int) -> None:
    if count > limit:
        raise Malformed("too_many_values", f"has {count} {kind}, more than the {limit} that a legal file can need")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    marked = RepeatedKeys(members)
    marked.repeated = tuple(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
    return marked


def _natural(digits: str) -> int | float:
    # Converting a number of many digits takes quadratic time, and "-0" is an int to Python but not to other readers.
    return int(digits) if len(digits) <= _MAX_DIGITS and not digits.startswith("-") else math.nan


def _refuse_constant(literal: str) -> NoReturn:
    raise Malformed("json", f"is not valid JSON: {literal} is no JSON value; write the file again")
