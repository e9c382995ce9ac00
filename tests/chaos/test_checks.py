"""The checks at a soak's end find what they are there for: each kind of damage, done to a store in good order."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app.settings import Settings
from app.store import jobs
from app.store.blobs import BlobStore, open_blobs
from app.store.database import Database
from app.store.ownership import LOCAL
from cogram_core import fuse
from tests.chaos.checks import check_all, let_a_day_pass
from tests.chaos.inputs import Files, make_files
from tests.chaos.plan import Plan, draw
from tests.chaos.reference import undisturbed
from tests.chaos.stacks import Stack
from tests.chaos.tally import Tally
from worker.results import place_output, sync_output

LEASE, ATTEMPTS = 60.0, 3


@dataclass
class Kept:
    """A store that holds what a soak of one job leaves."""

    plan: Plan
    files: Files
    stack: Stack
    database: Database
    fusion_id: str
    expected: dict[int, dict[str, Any]]

    def findings(self) -> list[str]:
        tally = Tally()
        accepted = tally.accept(self.fusion_id, 0)
        accepted.state = "succeeded"
        accepted.events = self._events()
        check_all(self.plan, self.files, self.stack, tally, self.expected)
        return tally.findings

    def change(self, statement: str) -> None:
        with self.database.transaction() as session:
            assert session.execute(text(statement)).rowcount > 0  # type: ignore[attr-defined]

    def _events(self) -> list[tuple[int, str]]:
        return [(number, name) for number, name in enumerate(("queued", "started", "succeeded"), 1)]


@pytest.fixture(scope="module")
def original(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Made once; each test damages a copy."""
    folder = tmp_path_factory.mktemp("original")
    shutil.copyfile(migrated_sqlite, folder / "cogram.sqlite3")
    plan = draw(0, 1)
    files = make_files(plan, folder / "inputs")
    job = plan.jobs[0]
    stack = Stack("", folder / "data", f"sqlite:///{folder}/cogram.sqlite3", [])
    database = Database(stack.database_url)
    blobs = open_blobs(Settings(data_dir=stack.data_dir, database_url=stack.database_url), database)
    fuse(job.recipe, folder / "out", inputs=files.local())
    fusion_id = _finished(database, blobs, job.recipe, folder / "out")
    database.close()
    return Kept(plan, files, stack, database, fusion_id, {0: undisturbed(job.recipe, files.local())})


@pytest.fixture
def kept(original: Kept, tmp_path: Path) -> Iterator[Kept]:
    """In good order."""
    shutil.copytree(original.stack.data_dir, tmp_path / "data")
    shutil.copyfile(original.stack.data_dir.parent / "cogram.sqlite3", tmp_path / "cogram.sqlite3")
    url = f"sqlite:///{tmp_path}/cogram.sqlite3"
    copy = replace(original, stack=Stack("", tmp_path / "data", url, []), database=Database(url))
    yield copy
    copy.database.close()


def _finished(database: Database, blobs: BlobStore, recipe: dict[str, Any], output: Path) -> str:
    with database.transaction() as session:
        fusion_id = jobs.submit(session, LOCAL, recipe, []).id
    with database.transaction() as session:
        claim = jobs.claim(session, fusion_id, "me", LEASE, ATTEMPTS)
        assert claim is not None
    found = sync_output(output, lambda: None)
    announced = dict(zip(found, blobs.announce(found.values()), strict=True))
    artifacts = place_output(output, announced, blobs, lambda: None)
    with database.transaction() as session:
        assert jobs.finish_succeeded(session, claim, {}, artifacts)
    return fusion_id


def test_a_store_in_good_order_is_found_so(kept: Kept) -> None:
    assert kept.findings() == []


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE fusions SET state = 'running'", "never ended"),
        ("UPDATE fusions SET state = 'cancelled'", "its caller saw 'succeeded'"),
        ("UPDATE fusions SET attempt = 2", "attempts begun: [1] of 2"),
        ("UPDATE events SET type = 'progress' WHERE type = 'succeeded'", "its events end"),
        (
            "INSERT INTO events (fusion_id, attempt, type, data, created_at) "
            "SELECT fusion_id, attempt, type, data, created_at FROM events WHERE type = 'succeeded'",
            "its events end",
        ),
        ("DELETE FROM events WHERE type = 'started'", "its follower saw"),
        (
            "UPDATE artifacts SET path = 'other.json' WHERE path = 'model.safetensors'",
            "differs from an undisturbed run",
        ),
        ("UPDATE artifacts SET path = 'other' WHERE path = 'trace.parquet'", "no trace"),
        ("DELETE FROM artifacts WHERE path = 'report.json'", "rows that nothing refers to"),
        (
            "INSERT INTO blobs (digest, size, created_at, touched_at) "
            "SELECT 'f' || substr(digest, 2), size, created_at, touched_at FROM blobs LIMIT 1",
            "rows without bytes",
        ),
    ],
)
def test_a_changed_row_is_found(kept: Kept, statement: str, found: str) -> None:
    kept.change(statement)
    assert any(found in finding for finding in kept.findings()), kept.findings()


def test_damaged_and_stray_files_are_found(kept: Kept) -> None:
    blobs = kept.stack.data_dir / "blobs"
    victim = sorted(path for path in blobs.glob("sha256/*/*") if path.stat().st_size > 0)[0]
    content = victim.read_bytes()
    victim.chmod(0o644)
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (victim.parent / ("0" * 64)).write_bytes(b"stray")
    (blobs / "incoming" / "half").write_bytes(b"half")
    (kept.stack.data_dir / "work" / kept.fusion_id).mkdir(parents=True)
    told = "\n".join(kept.findings())
    for found in ("not what they are called", "bytes without a row", "staged uploads", "work folders"):
        assert found in told


def test_what_is_only_half_done_is_gone_a_day_later(kept: Kept) -> None:
    blobs = kept.stack.data_dir / "blobs"
    (blobs / "sha256" / "00").mkdir()
    (blobs / "sha256" / "00" / ("0" * 64)).write_bytes(b"stray")
    (blobs / "incoming" / "half").write_bytes(b"half")
    tally = Tally()
    let_a_day_pass(kept.stack, tally)
    assert tally.counts["half-written files that the reaper removed"] == 1
    assert tally.counts["blobs that the last collection took"] == 1
    assert kept.findings() == []


def test_fusions_and_uploads_that_are_not_there_are_found(kept: Kept) -> None:
    tally = Tally()
    tally.accept("fus_never", 0)
    tally.acknowledge("family0-a", "0" * 64, 1)
    check_all(kept.plan, kept.files, kept.stack, tally, kept.expected)
    told = "\n".join(tally.findings)
    assert "accepted and not there: ['fus_never']" in told
    assert "uploads lost: ['family0-a']" in told


def test_two_fusions_under_one_key_are_found(kept: Kept) -> None:
    assert kept.plan.jobs[0].has_key
    with kept.database.transaction() as session:
        jobs.submit(session, LOCAL, kept.plan.jobs[0].recipe, [])
    assert any("under one key and made 2 fusions" in finding for finding in kept.findings())
