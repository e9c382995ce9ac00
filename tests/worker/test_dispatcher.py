"""From the outbox to the queue: nothing is lost, nothing piles up, a crash only repeats."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import redis
from celery import Celery

from app.store import jobs, outbox
from app.store.ids import FusionId
from app.store.ownership import LOCAL
from tests.worker.rig import Rig
from worker.dispatcher import Dispatcher, Rounds


def _dispatcher(rig: Rig, celery: Celery, **changes: object) -> Dispatcher:
    return Dispatcher(rig.database, celery, rig.settings.model_copy(update=changes))


def _queue(rig: Rig) -> list[str]:
    """The ids in the queue, oldest first."""
    with _valkey(rig) as client:
        messages = client.lrange("fusion.cpu", 0, -1)
    return [json.loads(message)["headers"]["argsrepr"].strip("[]'") for message in reversed(messages)]


def _lose_messages(rig: Rig) -> None:
    with _valkey(rig) as client:
        client.flushdb()


def _valkey(rig: Rig) -> redis.Redis:
    return redis.Redis.from_url(rig.settings.resolved_broker_url.replace("redis+socket://", "unix://"))


def _submit(rig: Rig) -> FusionId:
    with rig.database.transaction() as session:
        return FusionId(jobs.submit(session, LOCAL, {}, []).id)


def test_new_jobs_are_published_once_in_the_order_they_came(each_rig: Rig, celery: Celery) -> None:
    fusions = [_submit(each_rig) for _ in range(3)]
    dispatcher = _dispatcher(each_rig, celery)
    assert dispatcher.publish_new() == 3
    assert dispatcher.publish_new() == 0
    assert _queue(each_rig) == fusions


def test_a_crash_between_publishing_and_its_mark_only_publishes_twice(rig: Rig, celery: Celery) -> None:
    fusion_id = _submit(rig)
    with rig.database.reading() as session:
        unmarked = outbox.unpublished(session, 10)
    celery.send_task("fusions.run", args=[unmarked[0].fusion_id], queue="fusion.cpu")
    assert _dispatcher(rig, celery).publish_new() == 1
    assert _queue(rig) == [fusion_id, fusion_id]


def test_a_message_that_got_lost_is_published_again(each_rig: Rig, celery: Celery) -> None:
    fusion_id = _submit(each_rig)
    patient, hasty = (_dispatcher(each_rig, celery, republish_seconds=seconds) for seconds in (600.0, 0.01))
    patient.publish_new()
    _lose_messages(each_rig)
    assert patient.publish_lost() == 0  # too early to call it lost
    time.sleep(0.05)
    assert hasty.publish_lost() == 1
    assert _queue(each_rig) == [fusion_id]


def test_jobs_that_wait_long_do_not_pile_up_messages(rig: Rig, celery: Celery) -> None:
    for _ in range(3):
        _submit(rig)
    dispatcher = _dispatcher(rig, celery, republish_seconds=0.01)
    dispatcher.publish_new()
    time.sleep(0.05)
    assert [dispatcher.publish_lost() for _ in range(5)] == [0] * 5
    assert len(_queue(rig)) == 3


def test_a_claimed_job_is_not_published_again(rig: Rig, celery: Celery) -> None:
    fusion_id = _submit(rig)
    dispatcher = _dispatcher(rig, celery, republish_seconds=0.01)
    dispatcher.publish_new()
    _lose_messages(rig)
    with rig.database.transaction() as session:
        assert jobs.claim(session, fusion_id, "host:1", 60, 3) is not None
    time.sleep(0.05)
    assert dispatcher.publish_lost() == 0


def test_jobs_survive_a_broker_that_is_down_and_are_published_when_it_is_back(
    rig: Rig, celery: Celery, tmp_path: Path, broker_url: str
) -> None:
    fusion_id = _submit(rig)
    celery.conf.broker_url = f"redis+socket://{tmp_path / 'nobody.sock'}"
    Rounds(rig.database, celery, rig.settings).attend_due()
    with rig.database.reading() as session:
        assert [message.fusion_id for message in outbox.unpublished(session, 10)] == [fusion_id]
    celery.conf.broker_url = broker_url
    Rounds(rig.database, celery, rig.settings).attend_due()
    assert _queue(rig) == [fusion_id]


def test_a_broker_that_is_down_does_not_keep_the_reaper_from_its_work(rig: Rig, celery: Celery, tmp_path: Path) -> None:
    fusion_id = _submit(rig)
    with rig.database.transaction() as session:
        assert jobs.claim(session, fusion_id, "host:1", -1, 3) is not None
    celery.conf.broker_url = f"redis+socket://{tmp_path / 'nobody.sock'}"
    Rounds(rig.database, celery, rig.settings).attend_due()
    assert rig.row(fusion_id).state == "queued"


def test_a_duty_that_fails_in_an_unforeseen_way_ends_nothing(rig: Rig, celery: Celery) -> None:
    endless = rig.settings.work_dir / "fus_endless"
    endless.parent.mkdir(parents=True)
    endless.symlink_to(endless.name)  # no folder can be listed behind it
    rounds = Rounds(rig.database, celery, rig.settings)
    rounds.attend_due()
    fusion_id = _submit(rig)
    time.sleep(rig.settings.poll_seconds)
    rounds.attend_due()
    assert _queue(rig) == [fusion_id]


def test_the_dispatcher_process_publishes_and_ends_when_it_is_asked_to(rig: Rig) -> None:
    process = rig.dispatcher()
    fusion_id = _submit(rig)
    end = time.monotonic() + 30
    while _queue(rig) != [fusion_id]:
        assert time.monotonic() < end, rig.log()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
