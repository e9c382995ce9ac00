"""A queued fusion that may wait for ever says so, and what to do."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from datetime import timedelta

import pytest
from sqlalchemy import event

from app.client import Client
from app.fusions import waiting
from app.fusions.waiting import ANSWER_HOLDS, PATIENCE
from app.store import jobs, workers
from app.store.models import Fusion, WorkerSign, utc_now
from tests.app.factories import Service


@pytest.fixture(autouse=True)
def _looked_for_at_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service, which other tests use as well, may still know of their workers."""
    monkeypatch.setattr(waiting, "ANSWER_HOLDS", 0.0)


def _waits(service: Service, device: str, seconds: float = PATIENCE.total_seconds() + 1) -> str:
    """A fusion that was queued so long ago."""
    fusion_id = service.fusion(device=device)
    with service.context.database.transaction() as session:
        session.query(Fusion).update({"updated_at": utc_now() - timedelta(seconds=seconds)})
    return fusion_id


def _worker(service: Service, queues: Collection[str], silent: float = 0.0) -> None:
    with service.context.database.transaction() as session:
        workers.sign(session, "host:1", queues)
        session.flush()
        session.query(WorkerSign).update({"seen_at": utc_now() - timedelta(seconds=silent)})


def _waiting_for(service: Service, fusion_id: str) -> str | None:
    one = service.http.get(f"/v1/fusions/{fusion_id}").json()["waiting_for"]
    listed = {item["id"]: item["waiting_for"] for item in service.http.get("/v1/fusions").json()["items"]}
    assert listed[fusion_id] == one
    return None if one is None else str(one)


def test_a_fusion_that_nobody_will_take_names_the_queue_and_the_remedies_that_are_there(service: Service) -> None:
    fusion_id = _waits(service, "cuda:1")
    start = "No worker serves the queue fusion.cuda. Start one with `cogram worker --queues fusion.cuda`"
    assert _waiting_for(service, fusion_id) == f"{start}."
    _worker(service, ["fusion.cpu"])
    assert _waiting_for(service, fusion_id) == (
        f"{start}, or cancel this fusion and post its recipe again with device: cpu."
    )
    _worker(service, ["fusion.cpu", "fusion.cuda"])
    assert _waiting_for(service, fusion_id) is None


def test_a_worker_that_has_been_silent_for_a_lease_serves_nothing(service: Service) -> None:
    fusion_id = _waits(service, "auto")
    lease = service.context.settings.lease_seconds
    _worker(service, ["fusion.cpu"], silent=lease - 10)
    assert _waiting_for(service, fusion_id) is None
    _worker(service, ["fusion.cpu"], silent=lease + 10)
    assert "fusion.cpu" in (_waiting_for(service, fusion_id) or "")


def test_nothing_is_said_at_first_nor_once_it_is_not_queued(service: Service) -> None:
    young = _waits(service, "cpu", seconds=PATIENCE.total_seconds() - 5)
    assert _waiting_for(service, young) is None
    taken = _waits(service, "cpu")
    assert _waiting_for(service, taken) is not None
    claim = service.claim(taken)
    assert _waiting_for(service, taken) is None
    with service.context.database.transaction() as session:
        jobs.release(session, claim, "its worker was stopped")
    assert _waiting_for(service, taken) is None  # queued again just now


def test_however_many_ask_the_workers_are_looked_for_once_a_moment(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "ANSWER_HOLDS", ANSWER_HOLDS)
    fusion_id = _waits(service, "cpu")
    time.sleep(ANSWER_HOLDS)  # what other tests were answered is forgotten
    asked: list[str] = []
    engine = service.context.database.engine
    event.listen(engine, "before_cursor_execute", lambda *call: asked.append(call[2]) if "workers" in call[2] else None)
    begun = time.monotonic()
    for _ in range(20):
        assert _waiting_for(service, fusion_id) is not None
    assert 1 <= len(asked) <= 1 + (time.monotonic() - begun) / ANSWER_HOLDS


def test_the_entity_tag_tells_that_it_waits(service: Service) -> None:
    fusion_id = _waits(service, "cpu")
    before = service.http.get(f"/v1/fusions/{fusion_id}")
    _worker(service, ["fusion.cpu"])
    after = service.http.get(f"/v1/fusions/{fusion_id}", headers={"If-None-Match": before.headers["ETag"]})
    assert after.status_code == 200


def test_the_client_warns_once_while_it_waits(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.client._LONGEST_WAIT", 0.1)
    fusion_id = _waits(service, "cuda")
    with (
        Client(str(service.http.base_url)) as client,
        caplog.at_level(logging.WARNING, "app.client"),
        pytest.raises(TimeoutError, match=r"queued after 1 seconds\. No worker serves the queue fusion\.cuda"),
    ):
        client.wait(fusion_id, 1)
    (warning,) = caplog.messages
    assert warning.startswith(f"{fusion_id} is queued. No worker serves the queue fusion.cuda. Start one with")
