"""Metrics of jobs say what the database has, on both kinds."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from app.metrics.jobs import JobMetrics
from app.store import jobs, workers
from app.store.database import Database
from app.store.events import EventType
from app.store.ids import FusionId
from app.store.models import Event, Fusion
from app.store.ownership import LOCAL
from app.store.states import FusionState
from tests.store.factories import ATTEMPTS, EXPIRED, LONG, WORKER, claimed, in_state

RECIPE = {"stages": [{"method": "fisher"}, {"method": "cogram"}]}


class Watch:
    """A registry that is scraped by asking for a value."""

    def __init__(self, database: Database) -> None:
        self.registry = CollectorRegistry()
        self.metrics = JobMetrics(database, LONG)
        self.registry.register(self.metrics)
        self.metrics.begin()

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def _submitted(database: Database) -> FusionId:
    with database.transaction() as session:
        return FusionId(jobs.submit(session, LOCAL, RECIPE, []).id)


def test_states_and_queues_are_as_they_stand(database: Database) -> None:
    watch = Watch(database)
    for state in FusionState:
        in_state(database, state)
    in_state(database, FusionState.QUEUED)
    assert [watch("cogram_fusions", state=state.value) for state in FusionState] == [2, 1, 1, 1, 1, 1]
    assert watch("cogram_queue_jobs", queue="fusion.cpu") == 2
    assert watch("cogram_queue_jobs", queue="fusion.cuda") == 0
    assert (watch("cogram_queue_age_seconds", queue="fusion.cpu") or 0) > 0
    assert watch("cogram_queue_age_seconds", queue="fusion.cuda") == 0
    assert watch("cogram_workers_busy") == 1
    with database.transaction() as session:
        workers.sign(session, "a", {"fusion.cpu", "fusion.cuda"})
        workers.sign(session, "b", {"fusion.cpu"})
    assert [watch("cogram_workers", queue=queue) for queue in ("fusion.cpu", "fusion.cuda", "io")] == [2, 1, 0]
    assert watch("cogram_database_up") == 1


def test_what_ended_is_counted_once_with_its_method_and_time(database: Database) -> None:
    _end(database)  # before anyone watched
    watch = Watch(database)
    for _ in range(2):
        _end(database)
    for _ in range(3):  # scrapes
        assert watch("cogram_fusions_ended_total", state="succeeded") == 2
        assert watch("cogram_fusion_seconds_count", method="cogram", state="succeeded") == 2
    assert watch("cogram_fusion_wait_seconds_count") == 2
    _end(database)
    assert watch("cogram_fusions_ended_total", state="succeeded") == 3
    with database.transaction() as session:  # a fusion that is deleted takes nothing away
        session.query(Event).delete()
    assert watch("cogram_fusions_ended_total", state="succeeded") == 3
    assert watch("cogram_fusions_ended_total", state="failed") == 0


def test_lost_leases_count_and_graceful_ends_do_not(database: Database) -> None:
    watch = Watch(database)
    fusion_id = _submitted(database)
    claim = claimed(database, fusion_id)
    assert claim is not None
    with database.transaction() as session:
        assert jobs.release(session, claim, "its worker was stopped")
    assert watch("cogram_leases_lost_total") == 0
    for lost in range(1, ATTEMPTS + 1):
        assert claimed(database, fusion_id, lease=EXPIRED)
        with database.transaction() as session:
            jobs.requeue_expired(session, ATTEMPTS)
        assert watch("cogram_leases_lost_total") == lost
    assert watch("cogram_fusions_ended_total", state="failed") == 1
    with database.transaction() as session:
        other = FusionId(jobs.submit(session, LOCAL, RECIPE, []).id)
    assert claimed(database, other, lease=EXPIRED)
    assert claimed(database, other, lease=LONG)
    assert watch("cogram_leases_lost_total") == ATTEMPTS + 1


def test_decisions_are_summed_by_what_became_of_them(database: Database) -> None:
    watch = Watch(database)
    claim = claimed(database, _submitted(database))
    assert claim is not None
    for accepted in (3, 4):
        with database.transaction() as session:
            jobs.report(session, claim, {}, [(EventType.DECISIONS, {"accepted": accepted, "rolled_back": 1})])
    assert watch("cogram_decisions_total", action="accepted") == 7
    assert watch("cogram_decisions_total", action="rolled_back") == 2
    assert watch("cogram_decisions_total", action="skipped") == 0


def test_an_event_that_commits_after_one_with_a_greater_id_is_counted_too(database: Database) -> None:
    watch = Watch(database)
    fusion_id = _submitted(database)
    with database.transaction() as session:
        late = (session.get_one(Fusion, fusion_id).id, 1_000_000)
        session.add(Event(id=late[1] + 5, fusion_id=late[0], attempt=1, type="decisions", data={"accepted": 1}))
    assert watch("cogram_decisions_total", action="accepted") == 1
    with database.transaction() as session:
        session.add(Event(id=late[1], fusion_id=late[0], attempt=1, type="decisions", data={"accepted": 10}))
    assert watch("cogram_decisions_total", action="accepted") == 11


def test_without_a_database_a_scrape_says_so(sqlite_url: str) -> None:
    watch = Watch(database := Database(sqlite_url))
    with database.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE fusions RENAME TO gone")
    assert watch("cogram_database_up") == 0
    assert watch("cogram_fusions", state="queued") is None
    database.close()


def _end(database: Database) -> None:
    claim = claimed(database, _submitted(database), WORKER)
    assert claim is not None
    with database.transaction() as session:
        assert jobs.finish_succeeded(session, claim, {}, [])
