"""What the API knows of its requests: how many, how long, how many bytes."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
_PREFIX = "/v1"
_UNMATCHED = "unmatched"  # every path that is no route's: callers choose paths, and labels stay for ever


class RequestMetrics:
    """The instruments; one set an application."""

    def __init__(self, registry: CollectorRegistry) -> None:
        by_route = ("method", "route")
        self.requests = Counter("cogram_http_requests", "Requests answered", (*by_route, "status"), registry=registry)
        self.seconds = Histogram(
            "cogram_http_request_seconds",
            "Until the last byte of the answer",
            by_route,
            registry=registry,
            buckets=_SECONDS,
        )
        self.received = Counter("cogram_http_received_bytes", "Bytes of request bodies", by_route, registry=registry)
        self.sent = Counter("cogram_http_sent_bytes", "Bytes of answers' bodies", by_route, registry=registry)
        self.open = Gauge("cogram_http_requests_open", "Requests being answered", registry=registry)


class MeasuredRequests:
    """The outermost middleware: it sees even what broke within the others."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Counts one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status, received, sent = "aborted", 0, 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = str(message["status"])
            sent += len(message.get("body", b""))
            await send(message)

        try:
            with self._metrics.open.track_inprogress():
                await self._app(scope, counted_receive, counted_send)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = route_template(scope)
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.seconds.labels(method, route).observe(time.perf_counter() - began)
            self._metrics.received.labels(method, route).inc(received)
            self._metrics.sent.labels(method, route).inc(sent)


def route_template(scope: Scope) -> str:
    """The route that answered, with its parameters' names."""
    template = getattr(scope.get("route"), "path_format", None)
    if template is None:
        return _UNMATCHED
    # A route knows its path within the router that it was written for, and all of those are below one prefix or none.
    is_below = scope["path"].startswith(f"{_PREFIX}/") and not template.startswith(f"{_PREFIX}/")
    return _PREFIX + template if is_below else str(template)
