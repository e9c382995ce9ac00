"""What is kept for a time only goes when that is over, and takes nothing with it that somebody uses."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from app.settings import Settings
from app.store import jobs
from app.store.events import EventType
from app.store.models import (
    Base,
    Checkpoint,
    Dataset,
    Event,
    Fusion,
    FusionInput,
    IdempotentCall,
    UploadedFile,
    utc_now,
)
from app.store.ownership import LOCAL
from tests.worker.rig import Rig
from worker.housekeeping import expire, housekeeping

OWNED = {"tenant": LOCAL.tenant, "owner": LOCAL.account}
WEEK = timedelta(days=7)


def _settings(rig: Rig, **changes: Any) -> Settings:
    for_ever = dict.fromkeys(("keep_fusions_days", "keep_loose_files_days", "keep_unused_inputs_days"), 0)
    return rig.settings.model_copy(update={**for_ever, **changes})


def _count(rig: Rig, *tables: type[Base]) -> list[int]:
    with rig.database.reading() as session:
        return [session.query(table).count() for table in tables]


def _ended(rig: Rig, recipe: dict[str, Any]) -> str:
    fusion_id = rig.submit(recipe)
    with rig.database.transaction() as session:
        claim = jobs.claim(session, fusion_id, "host:1", 60, 3)
        assert claim is not None
        assert jobs.finish_failed(session, claim, {"code": "x", "detail": "y", "errors": []})
    return fusion_id


def _age(rig: Rig, table: type[Base], column: str, age: timedelta) -> None:
    with rig.database.transaction() as session:
        session.query(table).update({column: utc_now() - age})


def test_fusions_expire_by_their_end_and_running_ones_never(each_rig: Rig) -> None:
    rig = each_rig
    recipe = rig.recipe()
    old = [_ended(rig, recipe) for _ in range(25)]  # more than one batch
    _age(rig, Fusion, "finished_at", WEEK)
    running, young = rig.submit(recipe), _ended(rig, recipe)
    expire(rig.database, _settings(rig))
    assert _count(rig, Fusion) == [27]
    expire(rig.database, _settings(rig, keep_fusions_days=1.0))
    with rig.database.reading() as session:
        assert {fusion.id for fusion in session.query(Fusion)} == {running, young}
        for table in (Event, FusionInput):
            assert {row.fusion_id for row in session.query(table)} == {running, young}
    assert old
    assert rig.events(young, EventType.FAILED)


def test_loose_files_expire_and_their_bytes_are_collected_afterwards(each_rig: Rig) -> None:
    rig = each_rig
    writer = rig.blobs.writer()
    writer.write(b"never used")
    blob = writer.publish()
    with rig.database.transaction() as session:
        for name in ("old", "young"):
            file = {"kind": "checkpoint", "name": name, "path": "f", "digest": blob.digest, "size": blob.size}
            session.add(UploadedFile(**file, **OWNED))
    with rig.database.transaction() as session:
        session.query(UploadedFile).filter_by(name="old").update({"created_at": utc_now() - WEEK})
    kept = _settings(rig, keep_loose_files_days=1.0, collect_grace_seconds=0.0)
    housekeeping(rig.database, kept).attend_due()
    assert _count(rig, UploadedFile) == [1]
    assert rig.blob(blob.digest).exists()
    _age(rig, UploadedFile, "created_at", WEEK)
    housekeeping(rig.database, kept).attend_due()
    assert _count(rig, UploadedFile) == [0]
    assert not rig.blob(blob.digest).exists()


def test_inputs_expire_only_where_that_is_wanted_and_no_fusion_uses_them(each_rig: Rig) -> None:
    rig = each_rig
    used, unused = rig.recipe(), rig.recipe()
    rig.submit(used)
    for table in (Checkpoint, Dataset):
        _age(rig, table, "created_at", WEEK)
    expire(rig.database, _settings(rig))
    assert _count(rig, Checkpoint, Dataset) == [4, 4]
    expire(rig.database, _settings(rig, keep_unused_inputs_days=1.0))
    with rig.database.reading() as session:
        assert {row.id for row in session.query(Checkpoint)} == {source["checkpoint"] for source in used["sources"]}
        assert {row.id for row in session.query(Dataset)} == set(used["data"].values())
    assert unused != used


def test_answers_under_a_key_are_forgotten_after_their_time(each_rig: Rig) -> None:
    rig = each_rig
    with rig.database.transaction() as session:
        for key, age in (("old", timedelta(days=3)), ("young", timedelta(hours=23))):
            call = {"call": "POST /v1/fusions", "body_sha256": "", "status": 202, "headers": {}, "body": "{}"}
            session.add(IdempotentCall(owner="local", key=key, created_at=utc_now() - age, **call))
    expire(rig.database, _settings(rig, keep_idempotent_calls_days=1.0))
    with rig.database.reading() as session:
        assert [call.key for call in session.query(IdempotentCall)] == ["young"]
