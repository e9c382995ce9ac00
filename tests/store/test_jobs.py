"""The life of a job on both databases: who may move it, and what each move leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import product
from threading import Barrier, Thread

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.store import jobs, outbox
from app.store.blobs import AnnouncedBlob, StoredBlob, announce
from app.store.database import Database
from app.store.events import EventType, events_after
from app.store.models import Fusion
from app.store.ownership import LOCAL
from app.store.states import FINAL, MOVES, FusionState
from tests.store.factories import ATTEMPTS, ERROR, EXPIRED, LONG, WORKER, claimed, in_state, queued, row, running

DIGEST = "ab" * 32


def _events(database: Database, fusion_id: str) -> list[str]:
    with database.reading() as session:
        return [event.type for event in events_after(session, fusion_id, 0, 100)]


def _messages(database: Database) -> list[str]:
    with database.reading() as session:
        return [message.fusion_id for message in outbox.unpublished(session, 100)]


def test_a_submitted_job_is_queued_with_inputs_a_message_and_an_event(database: Database) -> None:
    fusion_id = queued(database)
    assert row(database, fusion_id).state is FusionState.QUEUED
    assert _messages(database) == [fusion_id]
    assert _events(database, fusion_id) == ["queued"]


def test_a_submission_that_is_rolled_back_leaves_nothing(database: Database) -> None:
    with database.transaction() as session:
        fusion_id = jobs.submit(session, LOCAL, {}, []).id
        session.rollback()
    assert _messages(database) == []
    assert _events(database, fusion_id) == []


@pytest.mark.parametrize(
    ("recipe", "queue"),
    [
        ({}, "fusion.cpu"),
        ({"device": "auto"}, "fusion.cpu"),
        ({"device": "cpu"}, "fusion.cpu"),
        ({"device": "cuda"}, "fusion.cuda"),
        ({"device": "cuda:1"}, "fusion.cuda"),
    ],
)
def test_a_job_goes_to_the_queue_of_its_device(database: Database, recipe: dict[str, str], queue: str) -> None:
    with database.transaction() as session:
        jobs.submit(session, LOCAL, recipe, [])
        assert [message.queue for message in outbox.unpublished(session, 10)] == [queue]


def test_a_job_whose_first_attempt_settled_on_a_gpu_goes_back_to_the_queue_of_gpus(database: Database) -> None:
    held = running(database)
    with database.transaction() as session:
        assert jobs.settle(session, held, {"device": "cuda"})
        assert jobs.release(session, held, "its worker was stopped")
        assert [message.queue for message in outbox.unpublished(session, 10)] == ["fusion.cuda"]


def test_of_many_workers_that_claim_at_once_one_gets_the_job(database: Database) -> None:
    fusion_id = queued(database)
    barrier = Barrier(8)
    claims: list[jobs.Claim | None] = []

    def work(name: str) -> None:
        barrier.wait()
        claims.append(claimed(database, fusion_id, name))

    threads = [Thread(target=work, args=(f"host:{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(claims) == 8
    winners = [claim for claim in claims if claim is not None]
    assert [claim.attempt for claim in winners] == [1]
    assert row(database, fusion_id).worker == winners[0].worker
    assert _events(database, fusion_id) == ["queued", "started"]


def test_a_claimed_job_has_no_message_left(database: Database) -> None:
    running(database)
    assert _messages(database) == []


def test_a_live_lease_keeps_others_out_and_an_expired_one_lets_the_next_in(database: Database) -> None:
    first = running(database, lease=LONG)
    assert claimed(database, first.fusion_id) is None
    with database.transaction() as session:
        assert jobs.heartbeat(session, first, EXPIRED)
    second = claimed(database, first.fusion_id, "host:2")
    assert second is not None
    assert second.attempt == 2


def _announced(database: Database) -> AnnouncedBlob:
    with database.transaction() as session:
        (blob,) = announce(session, [StoredBlob(DIGEST, 5)])
    return blob


def test_a_worker_that_lost_its_lease_can_write_nothing(database: Database) -> None:
    old = running(database, lease=EXPIRED)
    new = claimed(database, old.fusion_id, "host:2")
    assert new is not None
    blob = _announced(database)
    before = _events(database, old.fusion_id)
    with database.transaction() as session:
        assert jobs.standing(session, old) is None
        assert not jobs.heartbeat(session, old, LONG)
        assert not jobs.report(session, old, {"done": 9}, [(EventType.PROGRESS, {})])
        assert not jobs.finish_succeeded(session, old, {}, [jobs.ArtifactFile("old", blob)])
        assert not jobs.finish_failed(session, old, ERROR)
        assert not jobs.finish_cancelled(session, old)
        assert not jobs.release(session, old, "stopped")
        jobs.abandon(session, old.fusion_id, old.worker, "killed", ATTEMPTS)
    assert _events(database, old.fusion_id) == before
    fusion = row(database, old.fusion_id)
    assert (fusion.state, fusion.attempt, fusion.worker) == (FusionState.RUNNING, 2, "host:2")
    with database.transaction() as session:
        assert jobs.finish_succeeded(session, new, {}, [jobs.ArtifactFile("new", blob)])
    assert [artifact.path for artifact in row(database, old.fusion_id).artifacts] == ["new"]


def test_a_requeued_job_is_out_of_reach_for_the_worker_that_was_silent(database: Database) -> None:
    silent = running(database, lease=EXPIRED)
    with database.transaction() as session:
        assert jobs.requeue_expired(session, ATTEMPTS) == [silent.fusion_id]
        assert not jobs.finish_succeeded(session, silent, {}, [])
        assert not jobs.heartbeat(session, silent, LONG)
    assert row(database, silent.fusion_id).state == FusionState.QUEUED
    assert _messages(database) == [silent.fusion_id]


def test_a_live_lease_is_not_requeued(database: Database) -> None:
    claim = running(database)
    with database.transaction() as session:
        assert jobs.requeue_expired(session, ATTEMPTS) == []
    assert row(database, claim.fusion_id).state == FusionState.RUNNING


def test_a_job_lost_too_often_fails_and_tells_what_was_seen_each_time(database: Database) -> None:
    fusion_id = queued(database)
    for number in range(ATTEMPTS):
        assert claimed(database, fusion_id, f"host:{number}", lease=EXPIRED) is not None
        with database.transaction() as session:
            jobs.requeue_expired(session, ATTEMPTS)
    fusion = row(database, fusion_id)
    assert fusion.state is FusionState.FAILED
    assert fusion.error is not None
    assert fusion.error["code"] == "fusion.attempts_exhausted"
    assert [problem["location"] for problem in fusion.error["errors"]] == ["attempt 1", "attempt 2", "attempt 3"]
    assert all(f"host:{number}" in fusion.error["errors"][number]["message"] for number in range(ATTEMPTS))
    assert claimed(database, fusion_id) is None


def test_an_attempt_that_another_worker_took_over_is_told_of_when_the_last_one_is_lost(database: Database) -> None:
    first = running(database, "host:1", EXPIRED)
    second = claimed(database, first.fusion_id, "host:2", EXPIRED, attempts=2)
    assert second is not None
    assert _events(database, first.fusion_id) == ["queued", "started", "requeued", "started"]
    with database.transaction() as session:
        jobs.requeue_expired(session, 2)
    error = row(database, first.fusion_id).error
    assert error is not None
    assert [problem["location"] for problem in error["errors"]] == ["attempt 1", "attempt 2"]
    assert [f"host:{number + 1}" in error["errors"][number]["message"] for number in range(2)] == [True, True]


def test_the_last_lost_attempt_is_failed_by_the_reaper_not_claimed_again(database: Database) -> None:
    claim = running(database, lease=EXPIRED)
    assert claimed(database, claim.fusion_id, attempts=1) is None


def test_graceful_stops_are_not_counted_as_losses(database: Database) -> None:
    fusion_id = queued(database)
    for _ in range(ATTEMPTS + 1):
        claim = claimed(database, fusion_id)
        assert claim is not None
        with database.transaction() as session:
            assert jobs.release(session, claim, "worker stopped")
    fusion = row(database, fusion_id)
    assert (fusion.state, fusion.attempt, fusion.losses) == (FusionState.QUEUED, ATTEMPTS + 1, 0)
    assert _messages(database) == [fusion_id]


def test_the_parent_of_a_dead_process_gives_its_job_back_at_once(database: Database) -> None:
    claim = running(database)
    with database.transaction() as session:
        jobs.abandon(session, claim.fusion_id, "another:1", "signal 9", ATTEMPTS)
        assert jobs.standing(session, claim) is FusionState.RUNNING
        jobs.abandon(session, claim.fusion_id, WORKER, "signal 9", ATTEMPTS)
    fusion = row(database, claim.fusion_id)
    assert (fusion.state, fusion.losses) == (FusionState.QUEUED, 1)
    assert _messages(database) == [claim.fusion_id]


def test_success_records_artifacts_and_two_results_may_share_their_bytes(database: Database) -> None:
    blob = _announced(database)
    files = [jobs.ArtifactFile("model.safetensors", blob), jobs.ArtifactFile("copy.safetensors", blob)]
    for _ in range(2):
        claim = running(database)
        with database.transaction() as session:
            assert jobs.finish_succeeded(session, claim, {"fused_beats_all_sources": True}, files)
        fusion = row(database, claim.fusion_id)
        assert fusion.state is FusionState.SUCCEEDED
        assert fusion.verdict == {"fused_beats_all_sources": True}
        assert fusion.finished_at is not None
        assert [(file.path, file.digest, file.size) for file in fusion.artifacts] == [
            ("copy.safetensors", DIGEST, 5),
            ("model.safetensors", DIGEST, 5),
        ]


def test_cancelling_a_queued_job_ends_it_at_once(database: Database) -> None:
    fusion_id = queued(database)
    with database.transaction() as session:
        assert jobs.request_cancel(session, fusion_id) is FusionState.CANCELLED
    assert claimed(database, fusion_id) is None
    assert _messages(database) == []
    assert _events(database, fusion_id) == ["queued", "cancelled"]


def test_cancelling_a_running_job_asks_its_worker_which_then_ends_it(database: Database) -> None:
    claim = running(database)
    with database.transaction() as session:
        assert jobs.request_cancel(session, claim.fusion_id) is FusionState.CANCELLING
        assert jobs.request_cancel(session, claim.fusion_id) is FusionState.CANCELLING
        assert jobs.standing(session, claim) is FusionState.CANCELLING
        assert jobs.heartbeat(session, claim, LONG)
        assert not jobs.finish_succeeded(session, claim, {}, [])
        assert not jobs.finish_failed(session, claim, ERROR)
        assert jobs.finish_cancelled(session, claim)
    assert _events(database, claim.fusion_id) == ["queued", "started", "cancelling", "cancelled"]


def test_a_cancelled_job_whose_worker_dies_ends_cancelled_without_a_new_attempt(database: Database) -> None:
    claim = running(database)
    with database.transaction() as session:
        jobs.request_cancel(session, claim.fusion_id)
        assert jobs.heartbeat(session, claim, EXPIRED)
        jobs.requeue_expired(session, ATTEMPTS)
    assert row(database, claim.fusion_id).state is FusionState.CANCELLED


def test_a_worker_that_stops_while_asked_to_cancel_ends_the_job(database: Database) -> None:
    claim = in_state(database, FusionState.CANCELLING)
    with database.transaction() as session:
        assert jobs.release(session, claim, "worker stopped")
    assert row(database, claim.fusion_id).state is FusionState.CANCELLED


def test_cancelling_what_has_ended_or_never_was_changes_nothing(database: Database) -> None:
    for state in FINAL:
        claim = in_state(database, state)
        before = _events(database, claim.fusion_id)
        with database.transaction() as session:
            assert jobs.request_cancel(session, claim.fusion_id) is state
        assert _events(database, claim.fusion_id) == before
    with database.transaction() as session:
        assert jobs.request_cancel(session, "fus_unknown") is None


def _expire(session: Session, claim: jobs.Claim) -> None:
    long_ago = datetime(2000, 1, 1, tzinfo=UTC)
    session.execute(update(Fusion).where(Fusion.id == claim.fusion_id).values(lease_until=long_ago))


ACTIONS: dict[str, Callable[[Session, jobs.Claim], object]] = {
    "claim": lambda session, claim: jobs.claim(session, claim.fusion_id, "host:2", LONG, ATTEMPTS),
    "succeed": lambda session, claim: jobs.finish_succeeded(session, claim, {}, []),
    "fail": lambda session, claim: jobs.finish_failed(session, claim, ERROR),
    "end cancelled": jobs.finish_cancelled,
    "release": lambda session, claim: jobs.release(session, claim, "stopped"),
    "cancel": lambda session, claim: jobs.request_cancel(session, claim.fusion_id),
    "abandon": lambda session, claim: jobs.abandon(session, claim.fusion_id, WORKER, "killed", ATTEMPTS),
    "abandon for good": lambda session, claim: jobs.abandon(session, claim.fusion_id, WORKER, "killed", 1),
    "reap": lambda session, claim: jobs.requeue_expired(session, ATTEMPTS),
}


def test_only_the_listed_moves_exist_whatever_is_tried_in_whatever_state(database: Database) -> None:
    seen = set()
    for state, action, expired in product(FusionState, ACTIONS.values(), [False, True]):
        claim = in_state(database, state)
        with database.transaction() as session:
            if expired:
                _expire(session, claim)
            action(session, claim)
        after = row(database, claim.fusion_id)
        if (after.state, after.attempt) != (state, claim.attempt):
            seen.add((state, after.state))
        with database.transaction() as session:  # the next case must not meet this one's expired lease
            session.execute(update(Fusion).where(Fusion.id == claim.fusion_id).values(lease_until=None))
    assert seen == MOVES
