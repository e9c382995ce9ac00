"""The event stream: complete, in order, resumable, and quiet where nothing happens."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from app.client import Client, Event, parse_events
from app.settings import Settings
from app.store import jobs
from app.store.events import EventType
from tests.app.conftest import running, small
from tests.app.factories import Service


def _read_all(http: httpx.Client, fusion_id: str, last: int = 0) -> list[Event]:
    headers = {"Last-Event-ID": str(last)} if last else {}
    with http.stream("GET", f"/v1/fusions/{fusion_id}/events", headers=headers) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        return list(parse_events(answer.iter_lines()))


def _progress(service: Service, claim: jobs.Claim, done: int) -> None:
    with service.context.database.transaction() as session:
        assert jobs.report(session, claim, {"done": done}, [(EventType.PROGRESS, {"done": done, "total": 3})])


def test_a_follower_sees_everything_up_to_the_end_and_then_the_stream_ends(service: Service) -> None:
    fusion_id = service.fusion()

    def work() -> None:
        claim = service.claim(fusion_id)
        for done in range(3):
            time.sleep(0.05)
            _progress(service, claim, done)
        with service.context.database.transaction() as session:
            assert jobs.finish_failed(session, claim, {"code": "x", "detail": "y", "errors": []})

    thread = threading.Thread(target=work)
    thread.start()
    events = _read_all(service.http, fusion_id)
    thread.join()
    assert [event.type for event in events] == ["queued", "started", "progress", "progress", "progress", "failed"]
    assert [event.data["done"] for event in events if event.type == "progress"] == [0, 1, 2]
    assert [event.id for event in events] == sorted({event.id for event in events})
    assert events[-1].data["error"]["code"] == "x"
    assert {"attempt", "time"} <= events[0].data.keys()


def test_last_event_id_resumes_behind_that_event(service: Service) -> None:
    fusion_id = service.fusion()
    service.succeed(fusion_id, {})
    events = _read_all(service.http, fusion_id)
    assert [event.type for event in events] == ["queued", "started", "succeeded"]
    assert _read_all(service.http, fusion_id, last=events[0].id) == events[1:]
    url = f"/v1/fusions/{fusion_id}/events"
    for wrong in ("x", "-1", "9" * 19, "1.5"):
        assert service.http.get(url, headers={"Last-Event-ID": wrong}).status_code == 422


def test_a_follower_who_has_seen_the_end_is_let_go(service: Service) -> None:
    fusion_id = service.fusion()
    service.http.post(f"/v1/fusions/{fusion_id}/cancel")
    last = _read_all(service.http, fusion_id)[-1]
    assert last.type == "cancelled"
    assert _read_all(service.http, fusion_id, last=last.id) == []


def test_an_event_whose_id_is_below_one_already_seen_still_wakes_its_follower(
    postgresql_url: str, broker_server: str, tmp_path: Path
) -> None:
    """PostgreSQL gives ids before transactions commit, so the newest id says nothing about what came last."""
    settings = small(tmp_path, postgresql_url, broker_server).model_copy(update={"heartbeat_comment_seconds": 30.0})
    with running(settings) as service:
        slow, fast = service.fusion(), service.fusion()
        slow_claim, fast_claim = service.claim(slow), service.claim(fast)
        with service.connect(f"/v1/fusions/{slow}/events") as follower:
            _receive_until(follower, b"event: started")
            with service.context.database.transaction() as session:
                assert jobs.report(session, slow_claim, {"done": 1}, [(EventType.PROGRESS, {"done": 1, "total": 3})])
                _progress(service, fast_claim, 1)
                time.sleep(0.3)  # the bell has seen the greater id
            began = time.monotonic()
            _receive_until(follower, b"event: progress")
            assert time.monotonic() - began < 20  # the heartbeat alone would take 30


def test_a_silent_stream_says_that_it_lives(service: Service) -> None:
    fusion_id = service.fusion()
    comments = 0
    with service.http.stream("GET", f"/v1/fusions/{fusion_id}/events") as answer:
        for line in answer.iter_lines():
            comments += line.startswith(":")
            if comments == 2:
                break


def test_the_stream_of_a_deleted_fusion_ends(service: Service) -> None:
    fusion_id = service.fusion()
    service.http.post(f"/v1/fusions/{fusion_id}/cancel")
    events = _read_all(service.http, fusion_id)
    service.http.delete(f"/v1/fusions/{fusion_id}")
    url = f"/v1/fusions/{fusion_id}/events"
    assert service.http.get(url, headers={"Last-Event-ID": str(events[-1].id)}).status_code == 404


def _receive_until(follower: socket.socket, wanted: bytes) -> None:
    received = b""
    while wanted not in received:
        piece = follower.recv(65536)
        assert piece, f"the stream ended before {wanted!r}"
        received += piece


def test_more_followers_than_threads_wait_at_once_and_the_service_goes_on(service: Service) -> None:
    fusion_id = service.fusion()
    followers = [service.connect(f"/v1/fusions/{fusion_id}/events") for _ in range(60)]
    try:
        for follower in followers:
            _receive_until(follower, b"event: queued")
        assert service.http.get(f"/v1/fusions/{fusion_id}").status_code == 200
        service.http.post(f"/v1/fusions/{fusion_id}/cancel")
        for follower in followers:
            _receive_until(follower, b"event: cancelled")
    finally:
        for follower in followers:
            follower.close()


def test_a_follower_who_hangs_up_is_noticed(service: Service) -> None:
    fusion_id = service.fusion()
    follower = service.connect(f"/v1/fusions/{fusion_id}/events")
    follower.recv(4096)
    deadline = time.monotonic() + 5
    while not service.context.bell.listeners and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.context.bell.listeners == 1
    follower.close()
    while service.context.bell.listeners and time.monotonic() < deadline:
        time.sleep(0.01)
    assert service.context.bell.listeners == 0


def test_followers_are_sent_home_when_the_service_stops_and_find_everything_after_its_return(
    settings: Settings, free_port: int
) -> None:
    seen: list[Event] = []

    def follow(address: str, fusion_id: str) -> None:
        with Client(address) as client:
            seen.extend(client.follow(fusion_id))

    with running(settings, free_port) as first:
        fusion_id = first.fusion()
        thread = threading.Thread(target=follow, args=(str(first.http.base_url), fusion_id))
        thread.start()
        deadline = time.monotonic() + 5
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 2, "the follower held the service back"
    with running(settings, free_port) as second:
        second.succeed(fusion_id, {})
        thread.join(10)
    assert [event.type for event in seen] == ["queued", "started", "succeeded"]


@pytest.mark.parametrize("chunk", [": x", "event: progress", "id: 3"])
def test_a_half_received_event_is_not_taken_for_one(chunk: str, tmp_path: Path) -> None:
    assert list(parse_events([chunk, ""])) == []
    assert list(parse_events(["id: 1", "event: queued", "data: {}"])) == []
