"""The event stream of one fusion: in order, resumable, and without gaps for a reader that keeps its last id."""

from __future__ import annotations

from threading import Thread

from app.store import jobs
from app.store.database import Database
from app.store.events import EventType, events_after
from tests.store.factories import running


def test_a_reader_resumes_after_the_last_event_it_saw(database: Database) -> None:
    claim = running(database)
    with database.transaction() as session:
        jobs.report(session, claim, {}, [(EventType.PROGRESS, {"done": number}) for number in range(5)])
    with database.reading() as session:
        first = events_after(session, claim.fusion_id, 0, 4)
        rest = events_after(session, claim.fusion_id, first[-1].id, 100)
    assert [event.type for event in first] == ["queued", "started", "progress", "progress"]
    assert [event.data["done"] for event in rest] == [2, 3, 4]


def test_events_of_other_fusions_are_not_seen(database: Database) -> None:
    mine, other = running(database), running(database)
    with database.reading() as session:
        events = events_after(session, mine.fusion_id, 0, 100)
    assert {event.fusion_id for event in events} == {mine.fusion_id}
    assert other.fusion_id != mine.fusion_id


def test_a_reader_misses_nothing_while_several_write_at_once(database: Database) -> None:
    claim = running(database)

    def write() -> None:
        for number in range(20):
            with database.transaction() as session:
                jobs.report(session, claim, {}, [(EventType.PROGRESS, {"done": number})] * 2)

    writers = [Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    seen: list[int] = []
    while any(writer.is_alive() for writer in writers):
        seen += _new(database, claim, seen)
    seen += _new(database, claim, seen)
    assert seen == _new(database, claim, [])
    assert len(seen) == 2 + 3 * 20 * 2


def _new(database: Database, claim: jobs.Claim, seen: list[int]) -> list[int]:
    with database.reading() as session:
        return [event.id for event in events_after(session, claim.fusion_id, seen[-1] if seen else 0, 1000)]
