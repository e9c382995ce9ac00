"""Which methods a path has. The framework's own 405 names those of the first route that fits, and each of ours has one."""

from __future__ import annotations

from starlette.requests import Request
from starlette.routing import BaseRoute, Match

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


def allowed_methods(request: Request) -> list[str]:
    """All methods that would have been answered, by name."""
    routes: list[BaseRoute] = request.app.router.routes
    return [method for method in _METHODS if _is_answered(routes, request, method)]


def _is_answered(routes: list[BaseRoute], request: Request, method: str) -> bool:
    asked = {**request.scope, "method": method}
    return any(route.matches(asked)[0] is Match.FULL for route in routes)
