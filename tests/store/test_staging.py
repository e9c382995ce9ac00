"""Staged bytes: what is kept survives whoever wrote it, and one at a time appends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.store.staging import Mark, NotStaged, Staging, UploadBusy
from tests.app.factories import sha256

_WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
from app.store.staging import Staging
staged = Staging(Path(sys.argv[1])).open("upl_1")
staged.write(b"kept,")
staged.keep()
staged.write(b"not kept")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    """With one upload."""
    staging = Staging(tmp_path / "uploads")
    staging.create("upl_1")
    return staging


def test_what_a_killed_process_had_kept_is_there_and_the_rest_is_cut_off(staging: Staging) -> None:
    subprocess.run([sys.executable, "-c", _WRITE_AND_DIE, str(staging.folder)], check=False, timeout=60)
    assert staging.part("upl_1").read_bytes() == b"kept,not kept"
    assert staging.kept("upl_1") == Mark(5)
    staged = staging.open("upl_1")
    assert staged.part.read_bytes() == b"kept,"
    staged.write(b"more")
    assert staging.kept("upl_1") == Mark(5)
    staged.keep()
    assert staging.kept("upl_1") == Mark(9)
    assert staged.whole_digest() == sha256(b"kept,more")
    staged.release()


def test_one_at_a_time_appends(staging: Staging) -> None:
    first = staging.open("upl_1")
    for other in (staging, Staging(staging.folder)):
        with pytest.raises(UploadBusy):
            other.open("upl_1")
    first.release()
    first.release()
    staging.open("upl_1").release()


def test_what_was_let_go_is_free_even_while_a_child_is_being_started(staging: Staging) -> None:
    held = staging.open("upl_1")
    begun, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # as between fork and exec: everything that was open still is
        os.write(begun[1], b"x")
        os.read(go_on[0], 1)
        os._exit(0)
    try:
        os.read(begun[0], 1)
        held.release()
        staging.open("upl_1").release()
    finally:
        os.write(go_on[1], b"x")
        os.waitpid(child, 0)


def test_an_upload_that_is_not_here_says_so(staging: Staging) -> None:
    with pytest.raises(NotStaged):
        staging.open("upl_2")
    with pytest.raises(NotStaged):
        staging.kept("upl_2")
    staging.open("upl_1").discard()
    assert list(staging.folder.iterdir()) == []
    with pytest.raises(NotStaged):
        staging.open("upl_1")


def test_a_digest_is_carried_from_request_to_request_and_never_taken_for_another(staging: Staging) -> None:
    other = Staging(staging.folder)
    for turn, writer in enumerate([staging, other, staging, staging, other]):
        staged = writer.open("upl_1")
        staged.write(bytes([turn]) * 1000)
        staged.release()
    staged = staging.open("upl_1")
    assert staged.whole_digest() == sha256(b"".join(bytes([turn]) * 1000 for turn in range(5)))
    staged.write(b"dropped")
    staged.drop()
    assert staged.whole_digest() == sha256(staged.part.read_bytes())
    staged.release()


def test_a_mark_that_a_power_cut_has_torn_promises_nothing(staging: Staging) -> None:
    staged = staging.open("upl_1")
    staged.write(b"hello")
    staged.release()
    mark = staging.folder / "upl_1.mark"
    mark.write_bytes(mark.read_bytes()[:100])
    assert staging.kept("upl_1") == Mark(0)
    staged = staging.open("upl_1")
    assert (staged.mark, staged.part.read_bytes()) == (Mark(0), b"")
    staged.release()


def test_bytes_that_somebody_has_cut_off_are_not_made_up(staging: Staging) -> None:
    staged = staging.open("upl_1")
    staged.write(b"hello")
    staged.release()
    os.truncate(staging.part("upl_1"), 3)
    with pytest.raises(NotStaged):
        staging.open("upl_1")
    staging.part("upl_1").unlink()
    with pytest.raises(NotStaged):
        staging.open("upl_1")


def test_a_noted_digest_tells_that_the_bytes_may_have_left(staging: Staging) -> None:
    staged = staging.open("upl_1")
    staged.write(b"hello")
    staged.keep()
    staged.note(staged.whole_digest())
    staged.part.unlink()
    staged.release()
    again = Staging(staging.folder).open("upl_1")
    assert (again.is_placed, again.mark) == (True, Mark(5, sha256(b"hello")))
    again.discard()


def test_a_name_that_is_taken_is_not_given_twice_and_what_is_there_stays(staging: Staging) -> None:
    staged = staging.open("upl_1")
    staged.write(b"hello")
    staged.release()
    with pytest.raises(FileExistsError):
        staging.create("upl_1")
    assert staging.kept("upl_1") == Mark(5)
