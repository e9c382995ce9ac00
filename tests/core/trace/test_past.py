"""The decisions of an earlier run, gone through again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cogram_core.journal import Journal
from cogram_core.recording import Past, Recorder
from cogram_core.trace import Decision
from tests.core.trace.decisions import decision

FACTS: dict[str, Any] = {"stage": 0, "method": "m", "layer": "a", "kind": "layer", "reason": "r", "action": "merged"}


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(0, 8),
    steps=st.lists(st.tuples(st.sampled_from(["upcoming", "take", "forget"]), st.integers(0, 4)), max_size=12),
)
def test_a_past_behaves_like_a_list_that_is_eaten_from_its_head(count: int, steps: list[tuple[str, int]]) -> None:
    rows = [decision(seq) for seq in range(count)]
    taken: list[Decision] = []
    ended: list[int] = []
    past = Past(iter(rows), count, taken.append, ended.append)
    left, eaten, at_end = list(rows), list[Decision](), list[int]()
    for step, amount in steps:
        had = len(left)
        if step == "upcoming":
            assert list(past.upcoming(amount)) == left[:amount]
        elif step == "take":
            past.take(amount)
            eaten += left[:amount]
            del left[:amount]
        else:
            past.forget()
            left.clear()
        if had and not left and eaten:
            at_end.append(len(eaten))
        assert (past.left, past.taken, taken, ended) == (len(left), len(eaten), eaten, at_end)


def test_no_more_is_read_than_is_asked_for() -> None:
    read: list[int] = []

    def rows() -> Iterator[Decision]:
        for seq in range(9):
            read.append(seq)
            yield decision(seq)

    past = Past(rows(), 7, lambda row: None, lambda taken: None)
    past.upcoming(2)
    assert read == [0, 1]
    past.take(1)
    past.upcoming(2)
    assert read == [0, 1, 2]
    past.take(9)
    assert read == [*range(7)]  # what was written after the count was taken is not


def test_what_is_taken_over_is_recorded_as_it_was_and_the_numbers_and_the_clock_go_on(tmp_path: Path) -> None:
    earlier = [decision(seq, elapsed=1000.0 + seq) for seq in range(3)]
    heard: list[Decision] = []
    told: list[int] = []
    journal = Journal(tmp_path / "journal")
    recorder = Recorder(journal, heard.append, earlier, 3, told.append)
    recorder.past.take(2)
    before = time.monotonic()
    recorder.record(**FACTS)
    assert told == [2]
    assert recorder.past.upcoming(1) == ()
    recorder.record(**FACTS)
    assert heard[:2] == earlier[:2]
    assert [row.seq for row in heard] == [0, 1, 2, 3]
    assert 1001.0 <= heard[2].elapsed <= heard[3].elapsed <= 1001.0 + (time.monotonic() - before) + 1.0
    assert list(journal.decisions()) == heard
    journal.close()


def test_a_run_without_a_past_is_told_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    recorder = Recorder(journal, lambda row: None, resumed=lambda taken: pytest.fail("there was nothing to go on from"))
    assert recorder.past.upcoming(5) == ()
    recorder.past.take(1)
    recorder.past.forget()
    recorder.record(**FACTS)
    assert (recorder.count, recorder.past.taken) == (1, 0)
    journal.close()
