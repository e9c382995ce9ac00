"""Names the nearest known word for a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 64


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The word itself if it is known, else the known one that it resembles most, if any does."""
    choices = sorted(known)
    if word in choices:
        return word
    # Comparing takes quadratic time, and no known word is long.
    near = get_close_matches(word.lower(), choices, n=1) if len(word) <= _LONGEST else []
    return near[0] if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or the list of what there is."""
    choices = sorted(known)
    near = nearest(word, choices)
    if near is not None:
        return f"did you mean {near!r}?"
    return "known here: " + (", ".join(choices) if choices else "none")
