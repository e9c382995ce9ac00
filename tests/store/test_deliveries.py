"""Deliveries: one transaction with their event, claimed by one sender at a time, tried on a schedule, given up in time."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from app.signing import new_secret
from app.store import deliveries, jobs
from app.store.clock import database_now
from app.store.database import Database
from app.store.deliveries import DeliveryState, DisabledReason, Miss, Patience
from app.store.ids import new_webhook_id
from app.store.models import Delivery, Webhook
from app.store.ownership import LOCAL
from app.store.states import FusionState
from app.webhooks import repository
from tests.store.factories import ATTEMPTS, ERROR, LONG, WORKER, in_state, queued, row, running

EVERY = [event.value for event in deliveries.WebhookEvent]
LEASE = timedelta(seconds=60)
LAPSED = timedelta(seconds=-1)
PATIENCE = Patience((10.0, 100.0), timedelta(days=5))
ERROR_500 = Miss("Answered 500.", 500)


def _webhook(database: Database, **changes: Any) -> str:
    fields = {"tenant": LOCAL.tenant, "owner": LOCAL.account, "url": "https://example.com/", "events": EVERY}
    webhook = Webhook(id=new_webhook_id(), secret=new_secret(), **fields | changes)
    with database.transaction() as session:
        session.add(webhook)
    return webhook.id


def _ping(database: Database, webhook_id: str) -> str:
    with database.transaction() as session:
        return deliveries.ping(session, session.get_one(Webhook, webhook_id)).id


def _row(database: Database, delivery_id: str) -> Delivery:
    with database.reading() as session:
        return session.get_one(Delivery, delivery_id)


def _hook(database: Database, webhook_id: str) -> Webhook:
    with database.reading() as session:
        return session.get_one(Webhook, webhook_id)


def _claim(database: Database, delivery_id: str, lease: timedelta = LEASE) -> deliveries.Claim | None:
    with database.transaction() as session:
        return deliveries.claim(session, delivery_id, lease, PATIENCE)


def _held(database: Database, delivery_id: str, lease: timedelta = LEASE) -> deliveries.Claim:
    claim = _claim(database, delivery_id, lease)
    assert claim is not None
    return claim


def _miss(database: Database, held: deliveries.Claim, miss: Miss = ERROR_500) -> bool:
    with database.transaction() as session:
        return deliveries.missed(session, held, miss, PATIENCE)


def _arrive(database: Database, held: deliveries.Claim) -> bool:
    with database.transaction() as session:
        return deliveries.delivered(session, held, 204)


def _due(database: Database) -> list[str]:
    with database.reading() as session:
        return [message.id for message in deliveries.due(session)]


def _publish(database: Database) -> list[str]:
    with database.transaction() as session:
        messages = deliveries.due(session)
        for message in messages:
            deliveries.published(session, message)
    return [message.id for message in messages]


def _age(database: Database, **columns: timedelta) -> None:
    """Moves moments of every delivery into the past."""
    with database.transaction() as session:
        past = {name: database_now(session) - ago for name, ago in columns.items()}
        session.execute(update(Delivery).values(**past))


def _written(database: Database, webhook_id: str) -> list[str]:
    with database.reading() as session:
        chosen = select(Delivery.type).where(Delivery.webhook_id == webhook_id).order_by(Delivery.id)
        return [*session.scalars(chosen)]


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (FusionState.QUEUED, []),
        (FusionState.RUNNING, ["fusion.started"]),
        (FusionState.SUCCEEDED, ["fusion.started", "fusion.succeeded"]),
        (FusionState.FAILED, ["fusion.started", "fusion.failed"]),
        (FusionState.CANCELLING, ["fusion.started"]),
        (FusionState.CANCELLED, ["fusion.started", "fusion.cancelled"]),
    ],
)
def test_every_start_and_end_is_told(database: Database, state: FusionState, told: list[str]) -> None:
    webhook = _webhook(database)
    in_state(database, state)
    assert sorted(_written(database, webhook)) == sorted(told)


def test_a_fusion_cancelled_before_it_began_or_lost_too_often_is_told_too(database: Database) -> None:
    webhook = _webhook(database, events=["fusion.failed", "fusion.cancelled"])
    with database.transaction() as session:
        jobs.request_cancel(session, jobs.submit(session, LOCAL, {}, []).id)
    held = running(database)
    with database.transaction() as session:
        jobs.abandon(session, held.fusion_id, WORKER, "killed", max_attempts=1)
    assert sorted(_written(database, webhook)) == ["fusion.cancelled", "fusion.failed"]
    with database.reading() as session:
        failed = session.scalars(select(Delivery).where(Delivery.type == "fusion.failed")).one()
    assert '"error":"fusion.attempts_exhausted"' in failed.body


def test_a_delivery_goes_with_its_event_or_not_at_all(database: Database) -> None:
    webhook = _webhook(database)
    held = running(database)

    def crash() -> None:
        with database.transaction() as session:
            assert jobs.finish_failed(session, held, ERROR)
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    with database.transaction() as session:  # a lost lease ends nothing, and tells nothing
        assert not jobs.finish_failed(session, jobs.Claim(held.fusion_id, 7, WORKER, {}), ERROR)
    assert _written(database, webhook) == ["fusion.started"]


def test_only_enabled_webhooks_of_the_tenant_that_want_to_know_are_told(database: Database) -> None:
    told = _webhook(database, events=["fusion.failed"])
    deaf = _webhook(database, events=["fusion.succeeded"])
    theirs = _webhook(database, tenant="others")
    off = _webhook(database)
    with database.transaction() as session:
        deliveries.disable(session, session.get_one(Webhook, off), DisabledReason.ASKED)
    in_state(database, FusionState.FAILED)
    assert [_written(database, each) for each in (told, deaf, theirs, off)] == [["fusion.failed"], [], [], []]


def test_a_webhook_that_is_removed_while_a_fusion_ends_stops_nothing(database: Database) -> None:
    webhook = _webhook(database)
    fusion_id = queued(database)
    announced, over = threading.Event(), threading.Event()

    def end() -> None:
        with database.transaction() as session:
            jobs.claim(session, fusion_id, WORKER, LONG, ATTEMPTS)
            announced.set()
            over.wait(0.3)  # meanwhile the removal waits, or fails to see the row

    thread = threading.Thread(target=end)
    thread.start()
    assert announced.wait(30)
    with database.transaction() as session:
        found = repository.get_locked(session, LOCAL.tenant, webhook)
        assert found is not None
        repository.delete_all_of(session, found)
    over.set()
    thread.join(30)
    with database.reading() as session:
        assert session.scalars(select(Delivery)).all() == []
    assert row(database, fusion_id).state == FusionState.RUNNING


def test_a_delivery_is_claimed_by_one_sender_at_a_time(database: Database) -> None:
    delivery = _ping(database, _webhook(database))
    claims: list[deliveries.Claim | None] = []
    threads = [threading.Thread(target=lambda: claims.append(_claim(database, delivery))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(claim is None for claim in claims) == [False, True, True, True]
    assert (_row(database, delivery).state, _row(database, delivery).attempts) == ("sending", 1)


def test_a_sender_that_was_lost_leaves_its_message_to_the_next_which_sends_the_same(database: Database) -> None:
    delivery = _ping(database, _webhook(database))
    lost = _held(database, delivery, LAPSED)
    assert _due(database) == [delivery]
    second = _held(database, delivery)
    assert (second.id, second.body, second.attempt) == (lost.id, lost.body, 2)
    assert not _arrive(database, lost)  # it comes back too late to say anything
    assert not _miss(database, lost)
    assert _row(database, delivery).state == "sending"
    assert _arrive(database, second)
    done = _row(database, delivery)
    assert (done.state, done.attempts, done.last_status) == ("delivered", 2, 204)
    assert done.delivered_at is not None
    assert _claim(database, delivery) is None


def test_a_message_that_takes_its_sender_down_every_time_is_given_up(database: Database) -> None:
    delivery = _ping(database, _webhook(database))
    for _ in range(3):
        _held(database, delivery, LAPSED)
    assert _claim(database, delivery) is None
    found = _row(database, delivery)
    assert (found.state, found.attempts) == ("failed", 3)
    assert "lost" in str(found.last_error)


def test_tries_follow_the_schedule_with_some_jitter_until_it_ends(database: Database) -> None:
    delivery = _ping(database, _webhook(database))
    for delay in PATIENCE.delays:
        held = _held(database, delivery)
        with database.reading() as session:
            before = database_now(session)
        assert _miss(database, held)
        found = _row(database, delivery)
        assert (found.state, found.last_status, found.last_error) == ("pending", 500, "Answered 500.")
        assert 0.8 * delay <= (found.due_at - before).total_seconds() < 1.2 * delay + 60
        assert _claim(database, delivery) is None  # not yet
        assert _due(database) == []
        _age(database, due_at=timedelta(0))
    assert _miss(database, _held(database, delivery), Miss("No answer."))
    found = _row(database, delivery)
    assert (found.state, found.attempts, found.last_status, found.last_error) == ("failed", 3, None, "No answer.")
    assert _due(database) == []


def test_a_delivery_that_was_given_up_has_its_whole_schedule_again_when_asked_for(database: Database) -> None:
    delivery = _ping(database, _webhook(database))
    for _ in range(3):
        _miss(database, _held(database, delivery))
        _age(database, due_at=timedelta(0))
    with database.transaction() as session:
        assert deliveries.send_again(session, session.get_one(Delivery, delivery))
    for attempt in (4, 5, 6):
        held = _held(database, delivery)
        assert held.attempt == attempt
        _miss(database, held)
        _age(database, due_at=timedelta(0))
    assert _row(database, delivery).state == DeliveryState.FAILED


def test_an_answer_of_410_disables_the_webhook_and_gives_up_what_waits(database: Database) -> None:
    webhook = _webhook(database)
    first, waiting = _ping(database, webhook), _ping(database, webhook)
    under_way = _held(database, _ping(database, webhook))
    other = _ping(database, _webhook(database))
    _miss(database, _held(database, first), Miss("Answered 410.", 410))
    assert _hook(database, webhook).disabled_reason == "gone"
    assert (_row(database, first).last_status, _row(database, first).last_error) == (410, "Answered 410.")
    assert [_row(database, each).state for each in (first, waiting, other)] == ["failed", "failed", "pending"]
    _miss(database, under_way)
    assert _row(database, under_way.id).state == "failed"
    assert _due(database) == [other]


def test_a_webhook_that_has_failed_often_and_for_days_is_disabled_and_one_success_clears_it(database: Database) -> None:
    webhook = _webhook(database)

    def fail(times: int) -> None:
        for _ in range(times):
            _miss(database, _held(database, _ping(database, webhook)))

    def began(ago: timedelta) -> None:
        with database.transaction() as session:
            session.get_one(Webhook, webhook).failing_since = database_now(session) - ago

    fail(30)  # often, but not for days
    began(timedelta(days=4))
    fail(1)
    _arrive(database, _held(database, _ping(database, webhook)))
    assert (_hook(database, webhook).failures, _hook(database, webhook).failing_since) == (0, None)
    fail(8)
    began(timedelta(days=6))
    fail(1)  # for days, but not often
    assert _hook(database, webhook).disabled_at is None
    fail(1)
    assert _hook(database, webhook).disabled_reason == "failing"


def test_a_delivery_to_a_disabled_webhook_is_never_sent(database: Database) -> None:
    webhook = _webhook(database)
    lost = _ping(database, webhook)
    _held(database, lost, LAPSED)
    with database.transaction() as session:
        deliveries.disable(session, session.get_one(Webhook, webhook), DisabledReason.ASKED)
    late = _ping(database, webhook)  # written by whoever did not see the change yet
    assert _claim(database, lost) is None
    assert _claim(database, late) is None
    assert [_row(database, each).state for each in (lost, late)] == ["failed", "failed"]
    assert _row(database, late).attempts == 0


def test_what_is_due_is_published_once_for_each_try(database: Database) -> None:
    webhook = _webhook(database)
    first, second = _ping(database, webhook), _ping(database, webhook)
    assert _publish(database) == [first, second]
    assert _due(database) == []
    _miss(database, _held(database, first))
    _age(database, due_at=timedelta(0))
    assert _due(database) == [first]
    _held(database, second, LAPSED)
    assert _publish(database) == [second, first]
    assert _due(database) == []


def test_what_was_published_and_not_claimed_is_known(database: Database) -> None:
    webhook = _webhook(database)
    first, second, third = (_ping(database, webhook) for _ in range(3))
    _publish(database)
    _ping(database, _webhook(database))  # not published
    _arrive(database, _held(database, second))

    def unanswered(age: float, limit: int = 10) -> list[str]:
        with database.reading() as session:
            return [message.id for message in deliveries.unanswered(session, timedelta(seconds=age), limit)]

    with database.reading() as session:
        assert deliveries.waiting(session) == 2
    assert unanswered(60) == []
    assert unanswered(0) == [first, third]
    assert unanswered(0, limit=1) == [first]


def test_a_mark_that_comes_after_the_claim_does_not_hide_the_next_try(database: Database) -> None:
    delivery = _ping(database, _webhook(database))
    with database.reading() as session:
        (message,) = deliveries.due(session)
    _miss(database, _held(database, delivery))
    with database.transaction() as session:
        deliveries.published(session, message)
    _age(database, due_at=timedelta(0))
    assert _due(database) == [delivery]


def test_no_webhook_keeps_others_waiting(database: Database) -> None:
    busy, quiet = _webhook(database), _webhook(database)
    many = [_ping(database, busy) for _ in range(10)]
    one = _ping(database, quiet)
    assert _publish(database) == [*many[:4], one]
    held = _held(database, many[0])
    assert _due(database) == []  # what is being sent counts as well
    _arrive(database, held)
    assert _due(database) == [many[4]]


def test_the_queue_never_holds_more_than_so_many(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "_IN_FLIGHT", 3)
    waiting = [_ping(database, _webhook(database)) for _ in range(5)]
    assert _publish(database) == waiting[:3]
    assert _publish(database) == []
    _arrive(database, _held(database, waiting[1]))
    assert _publish(database) == waiting[3:4]


def test_old_deliveries_are_forgotten_once_they_have_ended(database: Database) -> None:
    webhook = _webhook(database)
    pending, sending, arrived = (_ping(database, webhook) for _ in range(3))
    _arrive(database, _held(database, arrived))
    _held(database, sending)
    with database.transaction() as session:
        assert deliveries.forget(session, timedelta(days=1)) == 0
    _age(database, due_at=timedelta(days=2))
    with database.transaction() as session:
        assert deliveries.forget(session, timedelta(days=1)) == 1
    with database.reading() as session:
        assert sorted(session.scalars(select(Delivery.id))) == sorted([pending, sending])


def test_a_delivery_that_is_asked_for_again_is_not_forgotten_meanwhile(database: Database) -> None:
    delivery_id = _ping(database, _webhook(database))
    _arrive(database, _held(database, delivery_id))
    _age(database, due_at=timedelta(days=2))
    asked, forgotten = threading.Event(), threading.Event()

    def forget() -> None:
        asked.wait(30)
        with database.transaction() as session:
            deliveries.forget(session, timedelta(days=1))
        forgotten.set()

    thread = threading.Thread(target=forget)
    thread.start()
    with database.transaction() as session:
        assert deliveries.send_again(session, session.get_one(Delivery, delivery_id))
        asked.set()
        forgotten.wait(0.3)  # it goes past on PostgreSQL, and waits on SQLite
    thread.join(30)
    assert _due(database) == [delivery_id]
