"""OpenTelemetry traces, where OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) names a collector; nothing elsewhere.

The SDK is imported only then: the API without it stays small. Its other settings are the SDK's own variables, such as
OTEL_TRACES_SAMPLER and OTEL_EXPORTER_OTLP_HEADERS. A caller's ``traceparent`` goes with its job even where this process
sends nothing, for the worker may.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanKind

_WHERE = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SDK = (
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk.resources",
    "opentelemetry.sdk.trace.export",
    "opentelemetry.trace.propagation.tracecontext",
)
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_FLUSH_SECONDS = 2.0  # a collector that is away keeps nobody longer
Attributes = Mapping[str, str | int | float | bool]
_parent: ContextVar[str | None] = ContextVar("traceparent", default=None)


def is_wanted() -> bool:
    """Whether a collector is named."""
    return any(os.environ.get(name) for name in _WHERE)


def modules() -> tuple[str, ...]:
    """What ``start_tracing`` will import, for processes that import before they fork."""
    return _SDK if is_wanted() else ()


def checked(traceparent: str | None) -> str | None:
    """A W3C trace context as it should be, or None."""
    return traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None


def current_traceparent() -> str | None:
    """Of the span that is open here; else of the caller; None without either."""
    return _parent.get()


@contextmanager
def continued(traceparent: str | None) -> Iterator[None]:
    """Within the block, ``traceparent`` is the context of what is done."""
    token = _parent.set(checked(traceparent))
    try:
        yield
    finally:
        _parent.reset(token)


def start_tracing(role: str) -> None:
    """Begins to send spans of this process, if a collector is named. After a fork, never before: it starts a thread."""
    global _provider  # noqa: PLW0603 - one a process, as the SDK's own is
    if not is_wanted() or _provider is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": f"cogram-{role}"})
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))


def flush_traces() -> None:
    """Sends what has gathered: for processes that are about to end."""
    if _provider is not None:
        # The SDK takes a time-out here and doesn't keep it: it waits for as long as the exporter tries.
        sending = Thread(target=_provider.force_flush, name="flush-traces", daemon=True)
        sending.start()
        sending.join(_FLUSH_SECONDS)


@contextmanager
def span(name: str, attributes: Attributes | None = None, *, server: bool = False) -> Iterator[Span | None]:
    """A span around the block, a child of the context around it; None where nothing is traced.

    An exception that leaves the block is recorded by its class; its text may hold what is nobody's business.
    """
    if _provider is None:
        yield None
        return
    opened = open_span(name, attributes, server=server)
    assert opened is not None
    token = _parent.set(_as_traceparent(opened))
    try:
        yield opened
    except BaseException as error:
        fail(opened, type(error).__name__)
        raise
    finally:
        _parent.reset(token)
        opened.end()


def open_span(name: str, attributes: Attributes | None = None, *, server: bool = False) -> Span | None:
    """A span that its maker has to end; for what begins and ends in two calls."""
    if _provider is None:
        return None
    from opentelemetry.trace import SpanKind

    kind: SpanKind = SpanKind.SERVER if server else SpanKind.INTERNAL
    tracer = _provider.get_tracer("cogram")
    return tracer.start_span(
        name,
        context=_context(_parent.get()),
        kind=kind,
        attributes=dict(attributes or {}),
        record_exception=False,
        set_status_on_exception=False,
    )


def fail(failed: Span | None, why: str) -> None:
    """Marks a span as one of something that went wrong."""
    if failed is not None:
        from opentelemetry.trace import StatusCode

        failed.set_status(StatusCode.ERROR, why)


def _context(traceparent: str | None) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if traceparent is None:
        return Context()
    return TraceContextTextMapPropagator().extract({"traceparent": traceparent}, Context())


def _as_traceparent(opened: Span) -> str:
    found = opened.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


_provider: TracerProvider | None = None
