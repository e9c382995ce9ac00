"""Continues the trace of whoever calls, and says in the answer which trace it was (W3C ``traceresponse``)."""

from __future__ import annotations

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import tracing
from app.metrics.requests import route_template
from app.request_scope import HEADER

_UNTRACED = ("/healthz/", "/v1/healthz/")  # probes ask every few seconds, for ever


class TracedRequests:
    """Around the request's scope, so that its log line has the trace, too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers within a span."""
        if scope["type"] != "http" or scope["path"].startswith(_UNTRACED):
            await self._app(scope, receive, send)
            return
        with tracing.continued(Headers(scope=scope).get("traceparent")):
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"]
        with tracing.span(method, {"http.request.method": method}, server=True) as span:
            traceparent = tracing.current_traceparent()

            async def labelled(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    if traceparent is not None:
                        headers["traceresponse"] = traceparent
                    if span is not None:
                        span.set_attribute("http.response.status_code", message["status"])
                        span.set_attribute("cogram.request_id", headers.get(HEADER, ""))
                        if message["status"] >= 500:
                            tracing.fail(span, str(message["status"]))
                await send(message)

            try:
                if traceparent is None:
                    await self._app(scope, receive, labelled)
                else:
                    with structlog.contextvars.bound_contextvars(trace_id=traceparent.split("-")[1]):
                        await self._app(scope, receive, labelled)
            finally:
                if span is not None:
                    route = route_template(scope)
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
