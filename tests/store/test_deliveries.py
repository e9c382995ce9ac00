"""Deliveries: one transaction with their event, claimed by one sender at a time, tried on a schedule, given up in time."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select

from app.store import deliveries, jobs
from app.store.clock import database_now
from app.store.database import Database
from app.store.deliveries import DeliveryState, DisabledReason, Miss
from app.store.models import Delivery, Webhook
from app.store.ownership import LOCAL
from app.store.states import FusionState
from app.webhooks import repository
from tests.store.delivering import (
    LAPSED,
    PATIENCE,
    age,
    arrive,
    claim,
    delivery_row,
    due_now,
    hold,
    miss,
    new_ping,
    new_webhook,
    webhook_row,
    written,
)
from tests.store.factories import ATTEMPTS, ERROR, LONG, WORKER, in_state, queued, row, running


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
    webhook = new_webhook(database)
    in_state(database, state)
    assert sorted(written(database, webhook)) == sorted(told)


def test_a_fusion_cancelled_before_it_began_or_lost_too_often_is_told_too(database: Database) -> None:
    webhook = new_webhook(database, events=["fusion.failed", "fusion.cancelled"])
    with database.transaction() as session:
        jobs.request_cancel(session, jobs.submit(session, LOCAL, {}, []).id)
    held = running(database)
    with database.transaction() as session:
        jobs.abandon(session, held.fusion_id, WORKER, "killed", max_attempts=1)
    assert sorted(written(database, webhook)) == ["fusion.cancelled", "fusion.failed"]
    with database.reading() as session:
        failed = session.scalars(select(Delivery).where(Delivery.type == "fusion.failed")).one()
    assert '"error":"fusion.attempts_exhausted"' in failed.body


def test_a_delivery_goes_with_its_event_or_not_at_all(database: Database) -> None:
    webhook = new_webhook(database)
    held = running(database)

    def crash() -> None:
        with database.transaction() as session:
            assert jobs.finish_failed(session, held, ERROR)
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    with database.transaction() as session:  # a lost lease ends nothing, and tells nothing
        assert not jobs.finish_failed(session, jobs.Claim(held.fusion_id, 7, WORKER, {}), ERROR)
    assert written(database, webhook) == ["fusion.started"]


def test_only_enabled_webhooks_of_the_tenant_that_want_to_know_are_told(database: Database) -> None:
    told = new_webhook(database, events=["fusion.failed"])
    deaf = new_webhook(database, events=["fusion.succeeded"])
    theirs = new_webhook(database, tenant="others")
    off = new_webhook(database)
    with database.transaction() as session:
        deliveries.disable(session, session.get_one(Webhook, off), DisabledReason.ASKED)
    in_state(database, FusionState.FAILED)
    assert [written(database, each) for each in (told, deaf, theirs, off)] == [["fusion.failed"], [], [], []]


def test_a_webhook_that_is_removed_while_a_fusion_ends_stops_nothing(database: Database) -> None:
    webhook = new_webhook(database)
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
    delivery = new_ping(database, new_webhook(database))
    claims: list[deliveries.Claim | None] = []
    threads = [threading.Thread(target=lambda: claims.append(claim(database, delivery))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(claim is None for claim in claims) == [False, True, True, True]
    assert (delivery_row(database, delivery).state, delivery_row(database, delivery).attempts) == ("sending", 1)


def test_a_sender_that_was_lost_leaves_its_message_to_the_next_which_sends_the_same(database: Database) -> None:
    delivery = new_ping(database, new_webhook(database))
    lost = hold(database, delivery, LAPSED)
    assert due_now(database) == [delivery]
    second = hold(database, delivery)
    assert (second.id, second.body, second.attempt) == (lost.id, lost.body, 2)
    assert not arrive(database, lost)  # it comes back too late to say anything
    assert not miss(database, lost)
    assert delivery_row(database, delivery).state == "sending"
    assert arrive(database, second)
    done = delivery_row(database, delivery)
    assert (done.state, done.attempts, done.last_status) == ("delivered", 2, 204)
    assert done.delivered_at is not None
    assert claim(database, delivery) is None


def test_a_message_that_takes_its_sender_down_every_time_is_given_up(database: Database) -> None:
    delivery = new_ping(database, new_webhook(database))
    for _ in range(3):
        hold(database, delivery, LAPSED)
    assert claim(database, delivery) is None
    found = delivery_row(database, delivery)
    assert (found.state, found.attempts) == ("failed", 3)
    assert "lost" in str(found.last_error)


def test_tries_follow_the_schedule_with_some_jitter_until_it_ends(database: Database) -> None:
    delivery = new_ping(database, new_webhook(database))
    for delay in PATIENCE.delays:
        held = hold(database, delivery)
        with database.reading() as session:
            before = database_now(session)
        assert miss(database, held)
        found = delivery_row(database, delivery)
        assert (found.state, found.last_status, found.last_error) == ("pending", 500, "Answered 500.")
        assert 0.8 * delay <= (found.due_at - before).total_seconds() < 1.2 * delay + 60
        assert claim(database, delivery) is None  # not yet
        assert due_now(database) == []
        age(database, due_at=timedelta(0))
    assert miss(database, hold(database, delivery), Miss("No answer."))
    found = delivery_row(database, delivery)
    assert (found.state, found.attempts, found.last_status, found.last_error) == ("failed", 3, None, "No answer.")
    assert due_now(database) == []


def test_a_delivery_that_was_given_up_has_its_whole_schedule_again_when_asked_for(database: Database) -> None:
    delivery = new_ping(database, new_webhook(database))
    for _ in range(3):
        miss(database, hold(database, delivery))
        age(database, due_at=timedelta(0))
    with database.transaction() as session:
        assert deliveries.send_again(session, session.get_one(Delivery, delivery))
    for attempt in (4, 5, 6):
        held = hold(database, delivery)
        assert held.attempt == attempt
        miss(database, held)
        age(database, due_at=timedelta(0))
    assert delivery_row(database, delivery).state == DeliveryState.FAILED


def test_an_answer_of_410_disables_the_webhook_and_gives_up_what_waits(database: Database) -> None:
    webhook = new_webhook(database)
    first, waiting = new_ping(database, webhook), new_ping(database, webhook)
    under_way = hold(database, new_ping(database, webhook))
    other = new_ping(database, new_webhook(database))
    miss(database, hold(database, first), Miss("Answered 410.", 410))
    assert webhook_row(database, webhook).disabled_reason == "gone"
    assert (delivery_row(database, first).last_status, delivery_row(database, first).last_error) == (
        410,
        "Answered 410.",
    )
    assert [delivery_row(database, each).state for each in (first, waiting, other)] == ["failed", "failed", "pending"]
    miss(database, under_way)
    assert delivery_row(database, under_way.id).state == "failed"
    assert due_now(database) == [other]


def test_a_webhook_that_has_failed_often_and_for_days_is_disabled_and_one_success_clears_it(database: Database) -> None:
    webhook = new_webhook(database)

    def fail(times: int) -> None:
        for _ in range(times):
            miss(database, hold(database, new_ping(database, webhook)))

    def began(ago: timedelta) -> None:
        with database.transaction() as session:
            session.get_one(Webhook, webhook).failing_since = database_now(session) - ago

    fail(30)  # often, but not for days
    began(timedelta(days=4))
    fail(1)
    arrive(database, hold(database, new_ping(database, webhook)))
    assert (webhook_row(database, webhook).failures, webhook_row(database, webhook).failing_since) == (0, None)
    fail(8)
    began(timedelta(days=6))
    fail(1)  # for days, but not often
    assert webhook_row(database, webhook).disabled_at is None
    fail(1)
    assert webhook_row(database, webhook).disabled_reason == "failing"


def test_a_delivery_to_a_disabled_webhook_is_never_sent(database: Database) -> None:
    webhook = new_webhook(database)
    lost = new_ping(database, webhook)
    hold(database, lost, LAPSED)
    with database.transaction() as session:
        deliveries.disable(session, session.get_one(Webhook, webhook), DisabledReason.ASKED)
    late = new_ping(database, webhook)  # written by whoever did not see the change yet
    assert claim(database, lost) is None
    assert claim(database, late) is None
    assert [delivery_row(database, each).state for each in (lost, late)] == ["failed", "failed"]
    assert delivery_row(database, late).attempts == 0


def test_old_deliveries_are_forgotten_once_they_have_ended(database: Database) -> None:
    webhook = new_webhook(database)
    pending, sending, arrived = (new_ping(database, webhook) for _ in range(3))
    arrive(database, hold(database, arrived))
    hold(database, sending)
    with database.transaction() as session:
        assert deliveries.forget(session, timedelta(days=1)) == 0
    age(database, due_at=timedelta(days=2))
    with database.transaction() as session:
        assert deliveries.forget(session, timedelta(days=1)) == 1
    with database.reading() as session:
        assert sorted(session.scalars(select(Delivery.id))) == sorted([pending, sending])


def test_a_delivery_that_is_asked_for_again_is_not_forgotten_meanwhile(database: Database) -> None:
    delivery_id = new_ping(database, new_webhook(database))
    arrive(database, hold(database, delivery_id))
    age(database, due_at=timedelta(days=2))
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
    assert due_now(database) == [delivery_id]
