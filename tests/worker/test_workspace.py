"""Folders of attempts, made and removed by workers and reapers at the same moment."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from worker.workspace import Workspace, attempts, remove_if_empty


def test_a_fusion_s_folder_that_is_gone_or_is_a_file_has_no_attempts(tmp_path: Path) -> None:
    (tmp_path / "fus_file").write_text("")
    assert attempts(tmp_path / "fus_gone") == []
    assert attempts(tmp_path / "fus_file") == []


def test_a_folder_is_made_while_an_earlier_worker_removes_the_fusion_s(tmp_path: Path) -> None:
    done = Event()

    def remove() -> None:
        while not done.is_set():
            remove_if_empty(tmp_path / "fus_1")
            time.sleep(0.0001)

    zombie = Thread(target=remove)
    zombie.start()
    try:
        for attempt in range(300):
            workspace = Workspace(tmp_path, "fus_1", attempt)
            workspace.create()
            assert workspace.path.is_dir()
            shutil.rmtree(workspace.path)
    finally:
        done.set()
        zombie.join()


def _left(work_dir: Path, attempt: int, journal: bytes) -> Workspace:
    workspace = Workspace(work_dir, "fus_1", attempt)
    workspace.create()
    (workspace.path / "output").mkdir()
    workspace.journal.write_bytes(journal)
    return workspace


def test_an_attempt_sees_the_journals_of_earlier_ones_in_their_order_and_of_no_others(tmp_path: Path) -> None:
    for attempt in (10, 9, 2, 12):
        _left(tmp_path, attempt, b"rows")
    Workspace(tmp_path, "fus_1", 3).create()
    found = Workspace(tmp_path, "fus_1", 11).earlier_journals()
    assert [path.parent.name for path in found] == ["2", "9", "10"]


def test_an_attempt_leaves_its_journal_and_those_that_reach_further(tmp_path: Path) -> None:
    for attempt, journal in enumerate((b"longest of all", b"ab", b"abc", b"another"), start=1):
        _left(tmp_path, attempt, journal)
    Workspace(tmp_path, "fus_1", 3).leave()
    assert sorted(attempts(tmp_path / "fus_1")) == [
        (attempt, tmp_path / "fus_1" / str(attempt)) for attempt in (1, 3, 4)
    ]
    assert [path.name for path in (tmp_path / "fus_1" / "3").iterdir()] == ["trace.journal"]
    assert (tmp_path / "fus_1" / "4" / "output").is_dir()  # a later attempt has another worker


@pytest.mark.parametrize("look", [1, 2, 3])
def test_a_journal_that_the_reaper_removes_between_two_looks_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    """The lease was lost, and another attempt has ended the fusion."""
    earlier, own = _left(tmp_path, 1, b"rows"), _left(tmp_path, 2, b"more rows")
    stat, looks = Path.stat, []

    def removed_before(path: Path, **options: bool) -> os.stat_result:
        if path == earlier.journal:
            looks.append(path)
            if len(looks) == look:
                shutil.rmtree(earlier.path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", removed_before)
    own.leave()
    monkeypatch.undo()
    assert attempts(tmp_path / "fus_1") == [(2, own.path)]
    assert own.journal.read_bytes() == b"more rows"


def test_an_attempt_without_a_journal_leaves_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, "fus_1", 1)
    workspace.create()
    (workspace.path / "file").write_text("x")
    workspace.leave()
    assert not workspace.path.exists()
