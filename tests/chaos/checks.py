"""What must hold at the end: nothing lost, nothing twice, no other bytes, nothing left over."""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, selectinload

from app.settings import Settings
from app.store.blobs import Collector, open_storage
from app.store.database import Database
from app.store.events import FINAL_EVENTS
from app.store.models import Base, Blob, Event, Fusion, OutboxMessage, Upload, UploadedFile
from app.store.states import FINAL, FusionState
from tests.chaos.inputs import Files
from tests.chaos.plan import Plan
from tests.chaos.reference import checkpoint_digest, file_digest, trace_digest
from tests.chaos.stacks import Stack
from tests.chaos.tally import FULL_DISK_CODES, Accepted, Tally
from worker.reaper import reap

_DAY = 2 * 86400.0
_UPLOADS_A_ROUND = 50  # the reaper removes at least so many at once

Expected = Mapping[int, Mapping[str, str]]


def is_settled(stack: Stack) -> bool:
    return not unsettled(stack)


def unsettled(stack: Stack) -> str:
    """What is still under way; nothing, if nothing is."""
    database = Database(stack.database_url)
    try:
        with database.reading() as session:
            open_ones = session.scalars(select(Fusion.id).where(Fusion.state.not_in(FINAL))).all()
            messages = session.scalar(select(func.count()).select_from(OutboxMessage)) or 0
    finally:
        database.close()
    folders = _work_folders(stack)
    told = [f"fusions {', '.join(open_ones[:5])}"] if open_ones else []
    told += [f"{messages} messages"] if messages else []
    return "; ".join(told + ([f"work folders {', '.join(folders[:5])}"] if folders else []))


def let_a_day_pass(stack: Stack, tally: Tally) -> None:
    """Runs the service's own reaper and collector once more, over a service that has stopped.

    What killed processes left half-written is removed a day after its last byte, and an unused blob after a time of grace:
    files and uploads are made older by days, and the grace is none.
    """
    settings = Settings(data_dir=stack.data_dir, database_url=stack.database_url)
    staged = [*settings.incoming_dir.glob("*"), *settings.uploads_dir.glob("*")]
    for path in staged:
        os.utime(path, (time.time() - _DAY, time.time() - _DAY))
    tally.counts["half-written files that the reaper removed"] = len(staged)
    database = Database(stack.database_url)
    try:
        with database.transaction() as session:
            session.execute(update(Upload).values(expires_at=Upload.created_at))
            expired = 1 + (session.scalar(select(func.count()).select_from(Upload)) or 0)
        for _ in range(-(-expired // _UPLOADS_A_ROUND)):
            reap(database, settings)
        collector = Collector(database, open_storage(settings), timedelta())
        tally.counts["bytes without a row before the last collection"] = collector.adopt_orphans()
        while collected := collector.collect():
            tally.counts["blobs that the last collection took"] += collected
    finally:
        database.close()


def check_all(plan: Plan, files: Files, stack: Stack, tally: Tally, expected: Expected) -> None:
    """Over the database and the folders of a service that has stopped."""
    database = Database(stack.database_url)
    try:
        with database.reading() as session:
            fusions = list(session.scalars(select(Fusion).options(selectinload(Fusion.artifacts)).order_by(Fusion.id)))
            events: dict[str, list[Event]] = defaultdict(list)
            for event in session.scalars(select(Event).order_by(Event.id)):
                events[event.fusion_id].append(event)
            _check_accepted(plan, fusions, tally)
            for fusion in fusions:
                _check_one(fusion, events[fusion.id], stack, tally, expected)
            _check_blobs(session, stack, tally)
            _check_uploads(session, files, tally)
    finally:
        database.close()
    tally.counts["left over: work folders"] = len(_work_folders(stack))
    tally.check(not _work_folders(stack), f"work folders were left: {_work_folders(stack)[:5]}")


def _check_accepted(plan: Plan, fusions: Iterable[Fusion], tally: Tally) -> None:
    """Each acknowledged fusion is there, and no call under a key made a second one."""
    by_id = {fusion.id: fusion for fusion in fusions}
    lost = sorted(set(tally.accepted) - set(by_id))
    tally.check(not lost, f"accepted and not there: {lost[:5]}")
    first_asked = Counter(fusion.recipe["seed"] for fusion in by_id.values() if fusion.retry_of is None)
    doubles = 0
    for job in plan.jobs:
        made = first_asked[job.number]
        tally.check(job.outcome != "refused" or made == 0, f"job {job.number} was refused and made {made} fusions")
        if job.has_key and made > 1:
            doubles += 1
            tally.find(f"job {job.number} was posted under one key and made {made} fusions")
        if not job.has_key:
            tally.counts["fusions made by posts whose answer was lost"] += max(0, made - 1)
    tally.counts.update({"jobs": len(plan.jobs), "fusions accepted": len(tally.accepted), "fusions lost": len(lost)})
    tally.counts["duplicate fusions"] = doubles


def _check_one(fusion: Fusion, events: list[Event], stack: Stack, tally: Tally, expected: Expected) -> None:
    accepted = tally.accepted.get(fusion.id) or Accepted(fusion.id, fusion.recipe["seed"], state=fusion.state)
    tally.counts[f"fusions {fusion.state}"] += 1
    tally.counts["attempts"] += fusion.attempt
    tally.counts["attempts most for one fusion"] = max(tally.counts["attempts most for one fusion"], fusion.attempt)
    tally.check(fusion.state in FINAL, f"{fusion.id} never ended: {fusion.state}")
    tally.check(accepted.state == fusion.state, f"{fusion.id}: its caller saw {accepted.state!r}, it is {fusion.state}")
    _check_events(fusion, events, accepted, tally)
    if fusion.state == FusionState.SUCCEEDED:
        _check_result(fusion, stack, tally, expected.get(accepted.job, {}))
    else:
        tally.check(not fusion.artifacts, f"{fusion.id} is {fusion.state} and has artifacts")
        tally.check(fusion.verdict is None, f"{fusion.id} is {fusion.state} and has a verdict")
    if fusion.state == FusionState.FAILED:
        _check_failure(fusion, accepted, tally, expected.get(accepted.job, {}))


def _check_events(fusion: Fusion, events: list[Event], accepted: Accepted, tally: Tally) -> None:
    """One end, the last of all; attempts begun one after the other; a follower saw each event once and in order."""
    kinds = [event.type for event in events]
    ends = [kind for kind in kinds if kind in FINAL_EVENTS]
    if ends != [fusion.state] or kinds[-1:] != ends:
        tally.counts["duplicate ends"] += len(ends) > 1
        tally.find(f"{fusion.id} is {fusion.state} and its events end {kinds[-4:]}")
    begun = [event.attempt for event in events if event.type == "started"]
    tally.check(begun == [*range(1, fusion.attempt + 1)], f"{fusion.id}: attempts begun: {begun} of {fusion.attempt}")
    if accepted.events:
        same = accepted.events == [(event.id, event.type) for event in events]
        tally.check(same, f"{fusion.id}: its follower saw {len(accepted.events)} events that are not the {len(events)}")


def _check_result(fusion: Fusion, stack: Stack, tally: Tally, wanted: Mapping[str, str]) -> None:
    found = {file.path: file.digest for file in fusion.artifacts}
    tally.check("trace.parquet" in found, f"{fusion.id} has no trace")
    given = {
        "checkpoint": checkpoint_digest(found),
        "trace": trace_digest(_blob(stack, found["trace.parquet"])) if "trace.parquet" in found else "",
    }
    differing = [name for name, digest in given.items() if wanted.get(name) != digest]
    tally.counts["results compared"] += 1
    tally.counts["different digests"] += len(differing)
    tally.check(
        not differing, f"{fusion.id} (job {fusion.recipe['seed']}): differs from an undisturbed run: {differing}"
    )


def _check_failure(fusion: Fusion, accepted: Accepted, tally: Tally, wanted: Mapping[str, str]) -> None:
    """Where it had to, as the core fails alone; or because the disk was full, and then the error says that."""
    error = fusion.error or {}
    if "error" in wanted and error.get("code") == wanted["error"]:
        tally.counts["fusions failed as expected"] += 1
        return
    full = tally.disk_was_full(fusion.finished_at) and error.get("code") in FULL_DISK_CODES
    tally.counts["fusions failed by the full disk, and asked for again"] += full
    tally.check(full, f"{fusion.id} (job {accepted.job}) failed: {error}")


def _check_blobs(session: Session, stack: Stack, tally: Tally) -> None:
    """Bytes, rows, and what refers to rows: the same three times."""
    rows = {row.digest: row.size for row in session.execute(select(Blob.digest, Blob.size))}
    stored = {path.name: path for path in (stack.data_dir / "blobs" / "sha256").glob("*/*")}
    referred = {digest for column in _references() for digest in session.scalars(select(column).distinct())}
    orphans = {
        "bytes without a row": set(stored) - set(rows),
        "rows without bytes": set(rows) - set(stored),
        "rows that nothing refers to": set(rows) - referred,
        "references without a row": referred - set(rows),
    }
    for what, digests in orphans.items():
        tally.counts[f"left over: {what}"] = len(digests)
        tally.check(not digests, f"{len(digests)} {what}: {sorted(digests)[:3]}")
    damaged = [
        digest
        for digest, path in stored.items()
        if file_digest(path) != digest or path.stat().st_size != rows.get(digest, path.stat().st_size)
    ]
    tally.counts["blobs"] = len(stored)
    tally.counts["blobs damaged"] = len(damaged)
    tally.check(not damaged, f"blobs that are not what they are called: {damaged[:3]}")
    settings = Settings(data_dir=stack.data_dir)
    staged = [path.name for folder in (settings.incoming_dir, settings.uploads_dir) for path in folder.glob("*")]
    staged += session.scalars(select(Upload.id)).all()
    tally.counts["left over: staged uploads"] = len(staged)
    tally.check(not staged, f"staged uploads were left: {staged[:5]}")


def _check_uploads(session: Session, files: Files, tally: Tally) -> None:
    """Every acknowledged upload has become what it was for, with its very bytes."""
    kept: dict[str, set[str]] = defaultdict(set)
    for table in ("checkpoint_files", "datasets"):
        columns = Base.metadata.tables[table].columns
        for row in session.execute(select(columns["digest"])):
            kept[table].add(row.digest)
    there = set().union(*kept.values(), session.scalars(select(UploadedFile.digest)))
    lost = [name for name, digest in tally.uploads.items() if digest not in there]
    changed = [name for name, digest in tally.uploads.items() if digest != file_digest(files.path(name))]
    tally.counts.update({"uploads acknowledged": len(tally.uploads), "uploads lost": len(lost)})
    tally.check(not lost, f"uploads lost: {lost[:5]}")
    tally.check(not changed, f"uploads changed: {changed[:5]}")


def _references() -> list[Any]:
    """Every column that names a blob."""
    return [
        column
        for table in Base.metadata.sorted_tables
        for column in table.columns
        if any(key.column is Blob.__table__.columns["digest"] for key in column.foreign_keys)
    ]


def _blob(stack: Stack, digest: str) -> Path:
    return stack.data_dir / "blobs" / "sha256" / digest[:2] / digest


def _work_folders(stack: Stack) -> list[str]:
    work = stack.data_dir / "work"
    return sorted(str(path.relative_to(work)) for path in work.glob("*"))
