"""Names the nearest known word for a mistyped one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or the list of what there is."""
    choices = sorted(known)
    near = get_close_matches(word.lower(), choices, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return "known here: " + (", ".join(choices) if choices else "none")
