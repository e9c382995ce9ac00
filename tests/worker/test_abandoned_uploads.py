"""Resumable uploads whose time is over are removed with their bytes, and no others."""

from __future__ import annotations

import os
import time
from datetime import timedelta

from app.store.ids import new_upload_id
from app.store.models import Upload, utc_now
from app.store.ownership import LOCAL
from app.store.staging import Staging
from tests.worker.rig import Rig
from worker.reaper import reap


def _upload(rig: Rig, staging: Staging, left: timedelta) -> str:
    upload_id = new_upload_id()
    staging.create(upload_id)
    with rig.database.transaction() as session:
        session.add(
            Upload(
                id=upload_id,
                tenant=LOCAL.tenant,
                owner=LOCAL.account,
                kind="dataset",
                name="n",
                path="p",
                length=5,
                metadata_header="",
                expires_at=utc_now() + left,
            )
        )
    return upload_id


def _left(rig: Rig, staging: Staging) -> tuple[set[str], set[str]]:
    with rig.database.reading() as session:
        return {upload.id for upload in session.query(Upload)}, {upload_id for upload_id, _ in staging.found()}


def test_an_expired_upload_goes_and_one_that_has_time_or_is_busy_stays(each_rig: Rig) -> None:
    staging = Staging(each_rig.settings.uploads_dir)
    past = timedelta(seconds=-1)
    expired, busy, ended = (_upload(each_rig, staging, past) for _ in range(3))
    living = _upload(each_rig, staging, timedelta(hours=1))
    staging.open(ended).discard()
    held = staging.open(busy)
    reap(each_rig.database, each_rig.settings)
    assert _left(each_rig, staging) == ({busy, living}, {busy, living})
    held.release()
    reap(each_rig.database, each_rig.settings)
    assert _left(each_rig, staging) == ({living}, {living})
    assert expired != ended


def test_files_that_no_row_tells_of_go_when_they_are_old(rig: Rig) -> None:
    staging = Staging(rig.settings.uploads_dir)
    old, new = new_upload_id(), new_upload_id()
    living = _upload(rig, staging, timedelta(hours=1))
    for upload_id in (old, new):
        staging.create(upload_id)
    for upload_id in (old, living):
        for suffix in ("part", "mark"):
            os.utime(staging.folder / f"{upload_id}.{suffix}", times=(0, time.time() - 7200))
    reap(rig.database, rig.settings)
    assert _left(rig, staging) == ({living}, {living, new})
