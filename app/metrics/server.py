"""The port on which Prometheus asks."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Thread
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, start_http_server

from app.settings import Settings

_log = structlog.get_logger("app.metrics")


def new_registry() -> CollectorRegistry:
    """With what there is to say of any Python process: memory, processor time, open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


@dataclass
class MetricsServer:
    """A listening port and the thread that answers on it."""

    role: str
    address: str
    _server: Any
    _thread: Thread

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def forget(self) -> None:
        """In a fork, which has the port but not the thread: lets go of it, so that the next worker can have it."""
        self._server.socket.close()


def serve_metrics(settings: Settings, role: str, registry: CollectorRegistry) -> MetricsServer | None:
    """Answers scrapes until it is closed; None where no port is set, or it can't be had: the service goes on unwatched."""
    if not settings.metrics_port:
        return None
    address = f"http://{settings.metrics_host}:{settings.metrics_port}/metrics"
    try:
        server, thread = start_http_server(settings.metrics_port, settings.metrics_host, registry)
    except OSError as error:
        _log.error("metrics.not_served", role=role, address=address, error=str(error))
        return None
    _log.info("metrics.served", role=role, address=address)
    return MetricsServer(role, address, server, thread)
