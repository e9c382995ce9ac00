"""Refuses query parameters that an operation doesn't have: a mistyped filter would be answered with everything."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from app.errors import Unprocessable, summary
from cogram_core.errors import Problem
from cogram_core.recipe.suggest import did_you_mean

_MOST_CHARACTERS, _MOST_TOLD = 64, 20  # of what a caller made up


async def only_known_parameters(request: Request) -> None:
    """Raises Unprocessable, listing all unknown parameters of the query."""
    given = set(request.query_params)
    if not given:  # most calls
        return
    route = request.scope["route"]
    assert isinstance(route, APIRoute)
    known = set(_names(route.dependant))
    problems = [
        Problem(name[:_MOST_CHARACTERS], "query.unknown", f"is no parameter of this call; {did_you_mean(name, known)}")
        for name in sorted(given - known)[:_MOST_TOLD]
    ]
    if problems:
        raise Unprocessable(summary(problems), errors=problems)


def _names(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for part in dependant.dependencies:
        yield from _names(part)
