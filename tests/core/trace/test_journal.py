from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cogram_core import journal as journals
from cogram_core.errors import OutputError
from cogram_core.journal import Journal, journal_batches, journal_identity, read_journal
from cogram_core.trace import Decision, Trace, decisions_of
from tests.core.trace.decisions import METADATA, decision, decisions

WRITER = """
import sys, time
from pathlib import Path
from cogram_core.journal import Journal
from tests.core.trace.decisions import decision
journal = Journal(Path(sys.argv[1]))
for seq in range(1024 + 100):
    journal.append(decision(seq))
print("written", flush=True)
time.sleep(60)
"""


def rows(path: Path) -> list[int]:
    return [row["seq"] for batch in read_journal(path) for row in batch.to_pylist()]


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given=st.lists(decisions, max_size=5), cuts=st.sets(st.integers(0, 4)))
def test_decisions_come_back_as_they_were(tmp_path: Path, given: list[Decision], cuts: set[int]) -> None:
    journal = Journal(tmp_path / "journal")
    for place, row in enumerate(given):
        journal.append(row)
        if place in cuts:
            journal.flush()
    assert list(journal.decisions()) == given
    journal.finish(tmp_path / "trace.parquet", METADATA)
    assert list(Trace(tmp_path / "trace.parquet").decisions()) == given


def test_a_journal_that_is_cut_anywhere_is_read_up_to_its_last_complete_batch(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    ends = []  # how many bytes the file has once each batch of two rows is complete
    for seq in range(6):
        journal.append(decision(seq, payload=b"x" * seq))
        if seq % 2:
            journal.flush()
            ends.append((tmp_path / "journal").stat().st_size)
    journal.close()
    path = tmp_path / "journal"
    for length in range(path.stat().st_size, -1, -1):
        os.truncate(path, length)
        complete = sum(end <= length for end in ends)
        assert sum(batch.num_rows for batch in read_journal(path)) == 2 * complete, length


def test_a_tail_of_zeros_ends_the_journal_where_it_begins(tmp_path: Path) -> None:
    """What a file system may leave after a power cut: the length is there, the bytes are not."""
    journal = Journal(tmp_path / "journal")
    journal.append(decision(0))
    journal.flush()
    whole = (tmp_path / "journal").stat().st_size
    journal.append(decision(1))
    journal.close()
    raw = (tmp_path / "journal").read_bytes()
    for kept in range(whole, len(raw), 8):
        (tmp_path / "journal").write_bytes(raw[:kept].ljust(len(raw), b"\0"))
        assert rows(tmp_path / "journal")[:1] == [0]
        assert len(rows(tmp_path / "journal")) <= 2


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3))
def test_a_damaged_journal_gives_true_decisions_or_none(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    path = tmp_path / "journal"
    if not path.exists():
        journal = Journal(path, {"run": "this"})
        for seq in range(12):
            journal.append(decision(seq, payload=bytes([seq]) * seq))
            if seq % 4 == 3:
                journal.flush()
        journal.close()
    raw = bytearray(path.read_bytes())
    for place, change in flips:
        raw[place % len(raw)] ^= change
    damaged = io.BytesIO(raw)
    journal_identity(damaged)  # whatever it says, it says it without an error
    found = [row for batch in journal_batches(damaged) for row in decisions_of(batch)]
    assert found == [decision(seq, payload=bytes([seq]) * seq) for seq in range(len(found))]


def test_a_journal_says_what_run_it_is_of(tmp_path: Path) -> None:
    Journal(tmp_path / "journal", {"recipe": {"seed": 1}}).close()
    with (tmp_path / "journal").open("rb") as file:
        assert journal_identity(file) == {"recipe": {"seed": 1}}


def test_a_killed_writers_complete_batches_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "written\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    kept = rows(path)
    # Batches of 512 rows, and more wherever a second went by between two rows.
    assert len(kept) >= 1024
    assert kept == list(range(len(kept)))


def test_a_row_that_comes_late_sends_the_waiting_ones_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "_BATCH_SECONDS", 0.05)
    journal = Journal(tmp_path / "journal")
    journal.append(decision(0))
    assert rows(tmp_path / "journal") == []
    time.sleep(0.06)
    journal.append(decision(1))
    assert rows(tmp_path / "journal") == [0, 1]
    journal.close()


def test_large_payloads_are_not_kept_waiting(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(decision(0, payload=bytes(2**24)))
    assert rows(tmp_path / "journal") == []
    journal.append(decision(1, payload=bytes(2**24)))
    assert rows(tmp_path / "journal") == [0, 1]
    journal.close()


def test_closing_twice_is_safe_and_keeps_every_row(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(decision(0))
    journal.close()
    journal.close()
    assert rows(tmp_path / "journal") == [0]


def test_a_large_payload_has_a_batch_for_itself_for_a_page_of_parquet_holds_no_more(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(decision(0, payload=bytes(2**20)))
    journal.append(decision(1, payload=bytes(2**25 + 1)))
    journal.append(decision(2, payload=b"x"))
    journal.finish(tmp_path / "trace.parquet", METADATA)
    assert [batch.num_rows for batch in read_journal(tmp_path / "journal")] == [1, 1, 1]
    groups = pq.ParquetFile(tmp_path / "trace.parquet").metadata
    assert [groups.row_group(place).num_rows for place in range(groups.num_row_groups)] == [1, 1, 1]


def test_what_parquet_refuses_is_told_and_the_journal_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append(decision(0))

    def refused(*_: object) -> None:
        raise pa.ArrowInvalid("Parquet cannot store strings with size 2GB or more")

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", refused)
    with pytest.raises(OutputError, match=r"can.t be written .Parquet cannot store"):
        journal.finish(tmp_path / "trace.parquet", METADATA)
    assert rows(tmp_path / "journal") == [0]


def test_a_trace_without_all_its_rows_is_not_written_as_if_it_had_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    for seq in range(2):
        journal.append(decision(seq))
        journal.flush()
    journal.close()
    raw = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(raw[: len(raw) * 3 // 4])
    with pytest.raises(OutputError, match="only 1 of 2 decisions"):
        journal.finish(tmp_path / "trace.parquet", METADATA)
