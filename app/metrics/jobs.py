"""What the dispatcher tells of all jobs, out of the database.

Two ways, both at the moment of a scrape. How things stand (counts by state, the age of queues) is asked of small indexed
queries. What has happened (durations, decisions, lost leases) is gathered by following the table of events from where the
last scrape ended: counters in the workers would die with the child of each job, and sums over the tables would fall when
fusions are deleted, which Prometheus takes for a restart. A counter begins at nothing with its process, as all do.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.queues import OF_FUSIONS, QUEUES
from app.store import workers
from app.store.clock import database_now
from app.store.database import Database
from app.store.deliveries import DeliveryState
from app.store.events import EventType
from app.store.models import Delivery, Event, Fusion, OutboxMessage, Upload
from app.store.states import FINAL, HELD, FusionState

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
_OVERLAP_SECONDS = 30.0  # an id may become visible so long after a greater one: its transaction was open
_PAGE = 5_000
_ENDINGS = {state.value: state for state in FINAL}
_DECISIONS = ("accepted", "trained", "refined", "rolled_back", "skipped")
_log = structlog.get_logger("app.metrics")


class JobMetrics(Collector):
    """Register it with one process only."""

    def __init__(self, database: Database, lease_seconds: float) -> None:
        self._database = database
        self._silence = timedelta(seconds=lease_seconds)  # of a worker that is gone
        self._lock = Lock()
        self._gathered = CollectorRegistry()
        self._seconds = Histogram(
            "cogram_fusion_seconds",
            "From the start of the first attempt to the end, by the last stage's method and the final state",
            ("method", "state"),
            registry=self._gathered,
            buckets=_SECONDS,
        )
        self._waited = Histogram(
            "cogram_fusion_wait_seconds",
            "From the request to the start of the first attempt",
            registry=self._gathered,
            buckets=_SECONDS,
        )
        self._ended = Counter(
            "cogram_fusions_ended", "Fusions that came to a final state", ("state",), registry=self._gathered
        )
        self._lost = Counter("cogram_leases_lost", "Attempts whose worker died or fell silent", registry=self._gathered)
        self._decisions = Counter("cogram_decisions", "Decisions on units", ("action",), registry=self._gathered)
        for state in _ENDINGS:
            self._ended.labels(state)
        for action in _DECISIONS:
            self._decisions.labels(action)
        self._tail: _Tail | None = None

    def begin(self) -> None:
        """From here on events count. Without it, they do from the first scrape on."""
        with self._lock, self._database.reading() as session:
            self._tail = _Tail(session)

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks no database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All of it; without the database, only that it is out of reach."""
        up = GaugeMetricFamily("cogram_database_up", "Whether the database answers", value=1)
        try:
            with self._lock, self._database.reading() as session:
                gauges = [*_standing(session), _workers(session, self._silence)]
                self._follow(session)
        except SQLAlchemyError as error:
            _log.warning("metrics.database_failed", error=type(error).__name__)
            up = GaugeMetricFamily("cogram_database_up", "Whether the database answers", value=0)
            gauges = []
        yield up
        yield from gauges
        yield from self._gathered.collect()

    def _follow(self, session: Session) -> None:
        if self._tail is None:
            self._tail = _Tail(session)
        for events in self._tail.unseen(session):
            ended = [event.fusion_id for event in events if event.type in _ENDINGS]
            chosen = select(Fusion.id, Fusion.recipe, Fusion.created_at, Fusion.started_at, Fusion.finished_at)
            fusions = {row.id: row for row in session.execute(chosen.where(Fusion.id.in_(ended)))} if ended else {}
            for event in events:
                self._count(event)
                if event.type in _ENDINGS and (fusion := fusions.get(event.fusion_id)) is not None:
                    if fusion.started_at is None or fusion.finished_at is None:
                        continue
                    method = _last_method(fusion.recipe)
                    self._seconds.labels(method, event.type).observe(_between(fusion.started_at, fusion.finished_at))
                    self._waited.observe(_between(fusion.created_at, fusion.started_at))

    def _count(self, event: Event) -> None:
        if event.type in _ENDINGS:
            self._ended.labels(event.type).inc()
        if event.type == EventType.DECISIONS:
            for action in _DECISIONS:
                self._decisions.labels(action).inc(event.data.get(action, 0))
        if event.data.get("lost"):
            self._lost.inc()


class _Tail:
    """Every event once, in pages; those that commit late are found, too, as the last while is read again."""

    def __init__(self, session: Session) -> None:
        self._sure = session.scalar(select(func.max(Event.id))) or 0
        self._recent: dict[int, float] = {}  # ids above, and when each was seen

    def unseen(self, session: Session) -> Iterator[Sequence[Event]]:
        now = time.monotonic()
        position = self._sure
        while True:
            chosen = select(Event).where(Event.id > position).order_by(Event.id).limit(_PAGE)
            found = session.scalars(chosen).all()
            yield [event for event in found if event.id not in self._recent]
            self._recent.update({event.id: now for event in found if event.id not in self._recent})
            if len(found) < _PAGE:
                break
            position = found[-1].id
            session.expunge_all()
        settled = [number for number, seen in self._recent.items() if seen < now - _OVERLAP_SECONDS]
        self._sure = max(settled, default=self._sure)
        self._recent = {number: seen for number, seen in self._recent.items() if number > self._sure}


def _standing(session: Session) -> Iterator[Metric]:
    """How things stand now. The outbox has exactly the queued jobs; every count is of an index."""
    states = GaugeMetricFamily("cogram_fusions", "Fusions by state", labels=["state"])
    counts = {row.state: row.number for row in session.execute(_counted(Fusion.state))}
    for state in FusionState:
        states.add_metric([state.value], counts.get(state, 0))
    yield states
    queued = GaugeMetricFamily("cogram_queue_jobs", "Jobs that wait for a worker, by queue", labels=["queue"])
    age = GaugeMetricFamily("cogram_queue_age_seconds", "How long the oldest of them has waited", labels=["queue"])
    oldest = func.min(OutboxMessage.created_at).label("oldest")
    now = database_now(session)
    waiting = select(OutboxMessage.queue, func.count().label("number"), oldest).group_by(OutboxMessage.queue)
    found = {row.queue: row for row in session.execute(waiting)}
    for queue in OF_FUSIONS:
        row = found.get(queue)
        queued.add_metric([queue], row.number if row else 0)
        age.add_metric([queue], _between(row.oldest, now) if row else 0)
    yield queued
    yield age
    busy = select(func.count(func.distinct(Fusion.worker))).where(Fusion.state.in_(HELD))
    yield GaugeMetricFamily("cogram_workers_busy", "Workers that hold a job", value=session.scalar(busy) or 0)
    open_uploads = select(func.count()).select_from(Upload).where(Upload.digest.is_(None))
    yield GaugeMetricFamily(
        "cogram_uploads_open", "Resumable uploads under way", value=session.scalar(open_uploads) or 0
    )
    deliveries = GaugeMetricFamily("cogram_webhook_deliveries", "Deliveries kept, by state", labels=["state"])
    counts = {row.state: row.number for row in session.execute(_counted(Delivery.state))}
    for standing in DeliveryState:
        deliveries.add_metric([standing.value], counts.get(standing.value, 0))
    yield deliveries


def _workers(session: Session, silence: timedelta) -> Metric:
    present = GaugeMetricFamily("cogram_workers", "Workers that take jobs, by queue", labels=["queue"])
    found = workers.serving(session, silence)
    for queue in QUEUES:
        present.add_metric([queue], found[queue])
    return present


def _counted(column: Any) -> Any:
    return select(column.label("state"), func.count().label("number")).group_by(column)


def _last_method(recipe: Mapping[str, Any]) -> str:
    """Every recipe that was accepted has stages of methods in the catalogue; a scrape must not depend on it."""
    stages = recipe.get("stages")
    return str(stages[-1]["method"]) if stages else "none"


def _between(begin: datetime, end: datetime) -> float:
    """Seconds; two machines' clocks may differ."""
    return max(0.0, (end - begin).total_seconds())
