"""From a fusion's end to a receiver, through the dispatcher, the queue and a worker process, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler

import psutil
import pytest
import redis
from celery import Celery
from sqlalchemy import select, update

from app.signing import new_secret
from app.store import deliveries, jobs
from app.store.clock import database_now
from app.store.database import Database
from app.store.deliveries import Claim, Miss
from app.store.models import Delivery, Webhook
from app.store.ownership import LOCAL
from tests.nursery import Forked
from tests.receivers import Receiver, receiver
from tests.store.delivering import delivery_row, new_ping, new_webhook
from tests.worker.rig import ROOT, Rig
from worker.webhooks.courier import Courier
from worker.webhooks.publishing import Deliveries
from worker.webhooks.sending import Sender

SECRET = new_secret()


@pytest.fixture
def receiving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver on this machine, which the processes of the test may call, and soon call again."""
    monkeypatch.setenv("COGRAM_WEBHOOK_ALLOW_PRIVATE", "true")
    monkeypatch.setenv("COGRAM_WEBHOOK_DELAYS", "[0.1, 0.1, 0.1]")
    with receiver() as started:
        yield started


def _ends(rig: Rig, delivery_id: str, state: str = "delivered") -> Delivery:
    rig.until(lambda: delivery_row(rig.database, delivery_id).state == state)
    return delivery_row(rig.database, delivery_id)


def _fusion_that_fails(database: Database) -> str:
    with database.transaction() as session:
        fusion_id = jobs.submit(session, LOCAL, {}, []).id
        claim = jobs.claim(session, fusion_id, "host:1", 60, 3)
    assert claim is not None
    with database.transaction() as session:
        assert jobs.finish_failed(session, claim, {"code": "recipe.invalid", "detail": "No.", "errors": []})
    return fusion_id


def _killed(worker: Forked) -> None:
    """The whole worker at once, its children first."""
    for child in psutil.Process(worker.pid).children(recursive=True):
        child.kill()
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(30)


def test_events_come_to_the_receiver_signed_tried_again_and_again_when_asked(
    each_rig: Rig, receiving: Receiver
) -> None:
    rig, database = each_rig, each_rig.database
    webhook = new_webhook(database, url=receiving.url, secret=SECRET)
    receiving.statuses = [500, 204]
    fusion_id = _fusion_that_fails(database)
    rig.dispatcher()
    rig.worker("io")
    messages = receiving.wait(3)
    documents = {message.id: message.verified(SECRET) for message in messages}
    assert sorted(document["type"] for document in documents.values()) == ["fusion.failed", "fusion.started"]
    assert {document["data"]["id"] for document in documents.values()} == {fusion_id}
    ended = [_ends(rig, delivery_id) for delivery_id in documents]
    assert sorted(delivery.attempts for delivery in ended) == [1, 2]
    with database.transaction() as session:
        assert deliveries.send_again(session, session.get_one(Delivery, messages[0].id))
    again = receiving.wait(4)[3]
    assert (again.id, again.body) == (messages[0].id, messages[0].body)
    assert _ends(rig, again.id).attempts == 3
    receiving.statuses = [410]
    assert _ends(rig, new_ping(database, webhook), "failed").last_status == 410
    with database.reading() as session:
        assert session.get_one(Webhook, webhook).disabled_reason == "gone"


def test_a_worker_killed_between_sending_and_recording_sends_the_same_message_again(
    rig: Rig, receiving: Receiver
) -> None:
    answered = threading.Event()

    def hold(handler: BaseHTTPRequestHandler) -> None:
        answered.wait(60)
        handler.send_response(204)
        handler.end_headers()

    receiving.answer = hold
    delivery_id = new_ping(rig.database, new_webhook(rig.database, url=receiving.url, secret=SECRET))
    rig.dispatcher()
    worker = rig.worker("io")
    receiving.wait(1)
    _killed(worker)
    answered.set()
    receiving.answer = None
    assert delivery_row(rig.database, delivery_id).state == "sending"
    rig.worker("io")
    with rig.database.transaction() as session:  # what would take a minute: the dead worker's claim runs out
        session.execute(update(Delivery).values(due_at=database_now(session) - timedelta(seconds=1)))
    first, second = receiving.wait(2)
    sent = delivery_id, delivery_row(rig.database, delivery_id).body.encode()
    assert (second.id, second.body) == (first.id, first.body) == sent
    assert second.verified(SECRET)["type"] == "webhook.ping"
    assert _ends(rig, delivery_id).attempts == 2


def test_a_message_that_got_lost_is_published_again_and_one_that_waits_long_is_not(
    each_rig: Rig, celery: Celery
) -> None:
    rig = each_rig
    publishing = Deliveries(rig.database, celery, rig.settings.model_copy(update={"republish_seconds": 0.01}))
    webhook = new_webhook(rig.database)
    first, second = new_ping(rig.database, webhook), new_ping(rig.database, webhook)
    assert (publishing.publish_due(), publishing.publish_due()) == (2, 0)
    time.sleep(0.05)
    assert [publishing.publish_lost() for _ in range(3)] == [0, 0, 0]
    with redis.Redis.from_url(rig.settings.resolved_broker_url.replace("redis+socket://", "unix://")) as client:
        assert client.llen("io") == 2
        client.rpop("io")  # the oldest, which nobody will ever claim
        assert publishing.publish_lost() == 1
        assert publishing.publish_lost() == 0
        queued = [json.loads(message)["headers"]["argsrepr"].strip("[]'") for message in client.lrange("io", 0, -1)]
    assert queued == [first, second]


def test_a_message_delivered_twice_by_the_queue_is_sent_once(each_rig: Rig, receiving: Receiver) -> None:
    settings = each_rig.settings.model_copy(update={"webhook_allow_private": True})
    delivery_id = new_ping(each_rig.database, new_webhook(each_rig.database, url=receiving.url, secret=SECRET))
    courier = Courier(each_rig.database, settings, Sender(settings))
    threads = [threading.Thread(target=courier.deliver, args=[delivery_id]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    courier.deliver(delivery_id)
    courier.deliver("msg_" + "0" * 26)
    assert [message.id for message in receiving.messages] == [delivery_id]
    assert delivery_row(each_rig.database, delivery_id).state == "delivered"


def test_a_webhook_removed_while_its_message_is_sent_harms_nothing(rig: Rig, receiving: Receiver) -> None:
    settings = rig.settings.model_copy(update={"webhook_allow_private": True})
    delivery_id = new_ping(rig.database, new_webhook(rig.database, url=receiving.url, secret=SECRET))

    class Removing(Sender):
        def send(self, message: Claim) -> int | Miss:
            with rig.database.transaction() as session:
                session.delete(session.get_one(Delivery, message.id))
                session.flush()
                session.delete(session.get_one(Webhook, message.webhook_id))
            return super().send(message)

    for statuses in ([204], [500]):
        receiving.statuses = statuses
        Courier(rig.database, settings, Removing(settings)).deliver(delivery_id)
        delivery_id = new_ping(rig.database, new_webhook(rig.database, url=receiving.url, secret=SECRET))
    assert len(receiving.messages) == 2
    with rig.database.reading() as session:
        assert [*session.scalars(select(Delivery.id))] == [delivery_id]


def test_a_worker_of_webhooks_alone_loads_no_torch() -> None:
    loaded = (
        "import sys, worker.webhooks.tasks, worker.dispatcher; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.split() == ["False", "False"]
