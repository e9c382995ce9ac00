"""Which deliveries go to the queue, and in whose turn."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.store import deliveries
from app.store.database import Database
from tests.store.delivering import LAPSED, age, arrive, due_now, hold, miss, new_ping, new_webhook, publish


def test_what_is_due_is_published_once_for_each_try(database: Database) -> None:
    webhook = new_webhook(database)
    first, second = new_ping(database, webhook), new_ping(database, webhook)
    assert publish(database) == [first, second]
    assert due_now(database) == []
    miss(database, hold(database, first))
    age(database, due_at=timedelta(0))
    assert due_now(database) == [first]
    hold(database, second, LAPSED)
    assert publish(database) == [second, first]
    assert due_now(database) == []


def test_what_was_published_and_not_claimed_is_known(database: Database) -> None:
    webhook = new_webhook(database)
    first, second, third = (new_ping(database, webhook) for _ in range(3))
    publish(database)
    new_ping(database, new_webhook(database))  # not published
    arrive(database, hold(database, second))

    def unanswered(age: float, limit: int = 10) -> list[str]:
        with database.reading() as session:
            return [message.id for message in deliveries.unanswered(session, timedelta(seconds=age), limit)]

    with database.reading() as session:
        assert deliveries.waiting(session) == 2
    assert unanswered(60) == []
    assert unanswered(0) == [first, third]
    assert unanswered(0, limit=1) == [first]


def test_a_mark_that_comes_after_the_claim_does_not_hide_the_next_try(database: Database) -> None:
    delivery = new_ping(database, new_webhook(database))
    with database.reading() as session:
        (message,) = deliveries.due(session)
    miss(database, hold(database, delivery))
    with database.transaction() as session:
        deliveries.published(session, message)
    age(database, due_at=timedelta(0))
    assert due_now(database) == [delivery]


def test_no_webhook_keeps_others_waiting(database: Database) -> None:
    busy, quiet = new_webhook(database), new_webhook(database)
    many = [new_ping(database, busy) for _ in range(10)]
    one = new_ping(database, quiet)
    assert publish(database) == [many[0], one, *many[1:4]]
    held = hold(database, many[0])
    assert due_now(database) == []  # what is being sent counts as well
    arrive(database, held)
    assert due_now(database) == [many[4]]


def test_the_queue_never_holds_more_than_so_many(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliveries, "_IN_FLIGHT", 3)
    waiting = [new_ping(database, new_webhook(database)) for _ in range(5)]
    assert publish(database) == waiting[:3]
    assert publish(database) == []
    arrive(database, hold(database, waiting[1]))
    assert publish(database) == waiting[3:4]


def test_tenants_take_turns_however_many_webhooks_each_has(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [new_webhook(database, tenant="many") for _ in range(5)]
    flood = [[new_ping(database, webhook) for webhook in many] for _ in range(4)]
    few = new_webhook(database, tenant="few")
    quiet = [new_ping(database, few) for _ in range(2)]
    first, second = flood[0][:2]
    rounds = [*flood[0][2:], *flood[1], *flood[2], *flood[3]]
    monkeypatch.setattr(deliveries, "_IN_FLIGHT", 18)
    assert publish(database) == [first, quiet[0], second, quiet[1], *rounds[:14]]  # each webhook in its turn
    assert due_now(database) == []
    late = new_ping(database, new_webhook(database, tenant="late"))
    arrive(database, hold(database, first))
    assert publish(database) == [late]  # the next room is of whoever had least, not of whoever waits longest
    arrive(database, hold(database, second))
    assert due_now(database) == [rounds[14]]


def test_a_tenant_alone_has_the_whole_queue(database: Database) -> None:
    webhooks = [new_webhook(database) for _ in range(8)]
    turns = [[new_ping(database, webhook) for webhook in webhooks] for _ in range(5)]
    assert publish(database) == [*turns[0], *turns[1], *turns[2], *turns[3]]  # four of each webhook
    assert due_now(database) == []


def test_what_a_tenant_has_under_way_counts_as_turns_that_it_had(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = [new_ping(database, new_webhook(database, tenant="busy")) for _ in range(4)]
    monkeypatch.setattr(deliveries, "_IN_FLIGHT", 2)
    assert publish(database) == busy[:2]
    hold(database, busy[0])
    other = [new_ping(database, new_webhook(database, tenant="other")) for _ in range(3)]
    monkeypatch.setattr(deliveries, "_IN_FLIGHT", 5)
    assert publish(database) == [*other[:2], busy[2]]
