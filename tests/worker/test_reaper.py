"""What dead workers leave is brought back or cleared away, and nothing else is touched."""

from __future__ import annotations

import os
import time
from pathlib import Path

from app.store import jobs
from app.store.ids import FusionId
from app.store.ownership import LOCAL
from app.store.states import FusionState
from tests.worker.rig import Rig
from worker.reaper import reap, sweep


def _claimed(rig: Rig, lease_seconds: float) -> jobs.Claim:
    with rig.database.transaction() as session:
        fusion_id = jobs.submit(session, LOCAL, {}, []).id
        claim = jobs.claim(session, fusion_id, "host:1", lease_seconds, 3)
        assert claim is not None
        return claim


def _folder(rig: Rig, fusion_id: FusionId, attempt: int, journal: str | None = None) -> Path:
    path = rig.settings.work_dir / fusion_id / str(attempt)
    (path / "inputs").mkdir(parents=True)
    (path / "inputs" / "link").symlink_to(path)
    (path / "half.safetensors").write_text("half")
    if journal is not None:
        (path / "trace.journal").write_text(journal)
    return path


def test_a_job_whose_lease_ran_out_is_queued_again_and_its_folder_removed(each_rig: Rig) -> None:
    lost = _claimed(each_rig, -1)
    folder = _folder(each_rig, lost.fusion_id, 1)
    reap(each_rig.database, each_rig.settings)
    assert each_rig.row(lost.fusion_id).state is FusionState.QUEUED
    assert not folder.exists()


def test_the_journal_of_a_lost_attempt_stays_until_the_fusion_ends(rig: Rig) -> None:
    lost = _claimed(rig, -1)
    folder = _folder(rig, lost.fusion_id, 1, "decisions")
    reap(rig.database, rig.settings)
    assert [path.name for path in folder.iterdir()] == ["trace.journal"]
    assert (folder / "trace.journal").read_text() == "decisions"
    with rig.database.transaction() as session:
        jobs.request_cancel(session, lost.fusion_id)
    reap(rig.database, rig.settings)
    assert rig.work_folders() == []


def test_the_folder_of_a_live_attempt_stays_and_those_of_earlier_ones_go(rig: Rig) -> None:
    first = _claimed(rig, -1)
    with rig.database.transaction() as session:
        second = jobs.claim(session, first.fusion_id, "host:2", 60, 3)
    assert second is not None
    old, live = _folder(rig, first.fusion_id, 1), _folder(rig, first.fusion_id, 2)
    reap(rig.database, rig.settings)
    assert (old.exists(), live.exists()) == (False, True)


def test_a_fusion_that_ended_or_is_gone_keeps_no_folder(rig: Rig) -> None:
    ended = _claimed(rig, 60)
    with rig.database.transaction() as session:
        jobs.finish_succeeded(session, ended, {}, [])
    _folder(rig, ended.fusion_id, 1)
    _folder(rig, FusionId("fus_gone"), 1)
    sweep(rig.database, rig.settings.work_dir)
    assert rig.work_folders() == []


def test_an_upload_that_brought_nothing_for_days_is_swept_and_a_living_one_stays(rig: Rig) -> None:
    abandoned, living = (rig.blobs.incoming.folder / name for name in ("abandoned", "living"))
    for path in (abandoned, living):
        path.write_bytes(b"half")
    os.utime(abandoned, times=(0, time.time() - 2 * 86400))
    reap(rig.database, rig.settings)
    assert (abandoned.exists(), living.exists()) == (False, True)


def test_what_is_not_a_fusions_folder_is_left_alone(rig: Rig) -> None:
    other = rig.settings.work_dir / "lost+found"
    other.mkdir(parents=True)
    sweep(rig.database, rig.settings.work_dir)
    assert other.is_dir()
