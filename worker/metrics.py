"""What dispatcher and worker serve to Prometheus: all jobs and its own rounds; the GPUs and whether it stops."""

from __future__ import annotations

from typing import Any

from prometheus_client import Gauge
from sqlalchemy.exc import SQLAlchemyError

from app.metrics.gpu import GpuMemory
from app.metrics.jobs import JobMetrics
from app.metrics.server import MetricsServer, new_registry, serve_metrics
from app.settings import Settings
from app.store.database import Database
from worker.duties import Duties
from worker.process import STOPPING

_served: list[MetricsServer] = []  # of a worker's parent: signals of Celery carry nothing


def serve_dispatcher(settings: Settings, database: Database, rounds: Duties) -> MetricsServer | None:
    """All jobs, and when the dispatcher last came round: it hangs if that is long ago."""
    registry = new_registry()
    jobs = JobMetrics(database, settings.lease_seconds)
    registry.register(jobs)
    came_round = Gauge(
        "cogram_dispatcher_last_round_timestamp_seconds", "When every due duty had last been tried", registry=registry
    )
    came_round.set_function(lambda: rounds.last_round)
    failing = Gauge("cogram_dispatcher_duties_failing", "Duties whose last try failed", registry=registry)
    failing.set_function(lambda: rounds.failing)
    server = serve_metrics(settings, "dispatcher", registry)
    if server is not None:
        try:
            jobs.begin()
        except SQLAlchemyError:
            return server  # what happens counts from the first scrape with a database on
    return server


def serve_worker(**_signal: Any) -> None:
    """In a worker's parent, as it starts; answering means that it lives."""
    registry = new_registry()
    registry.register(GpuMemory())
    stopping = Gauge("cogram_worker_stopping", "1 once the worker was asked to stop", registry=registry)
    stopping.set_function(STOPPING.is_set)
    server = serve_metrics(Settings(), "worker", registry)
    if server is not None:
        _served.append(server)


def forget_in_child(**_signal: Any) -> None:
    """A job's process must not hold the port: it may outlive the worker by a moment, and the next one wants it."""
    for server in _served:
        server.forget()
