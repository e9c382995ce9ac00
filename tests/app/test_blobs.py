"""Blobs: whole or not there, under the digest of what they hold."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from app.store.blobs import BlobStore, Incoming, LocalStorage, StoredBlob, announce, record_blob
from app.store.database import Database
from app.store.models import Blob
from tests.app.factories import sha256


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the store's files lie."""
    return tmp_path / "blobs"


@pytest.fixture
def store(root: Path, sqlite_url: str) -> Iterator[BlobStore]:
    """An empty store."""
    database = Database(sqlite_url)
    yield BlobStore(LocalStorage(root), Incoming(root / "incoming"), database)
    database.close()


def _files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_blob_lies_under_its_digest_and_can_not_be_written(store: BlobStore, root: Path) -> None:
    writer = store.writer()
    writer.write(b"he")
    writer.write(memoryview(b"llo"))
    stored = writer.publish()
    assert (stored.digest, stored.size) == (sha256(b"hello"), 5)
    path = LocalStorage(root).path(stored.digest)
    assert path == root / "sha256" / stored.digest[:2] / stored.digest
    assert path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o777 == 0o444
    assert _files(root) == [path]


def test_a_discarded_blob_leaves_nothing(store: BlobStore, root: Path) -> None:
    writer = store.writer()
    writer.write(b"hello")
    assert len(_files(root)) == 1
    writer.discard()
    assert _files(root) == []


def test_a_blob_that_can_not_be_placed_leaves_nothing(store: BlobStore, root: Path) -> None:
    (root / "sha256").write_bytes(b"in the way")
    writer = store.writer()
    writer.write(b"hello")
    with pytest.raises(OSError, match="sha256"):
        writer.publish()
    assert list(store.incoming.folder.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_blobs_stay(store: BlobStore, root: Path) -> None:
    kept, left = store.writer(), store.writer()
    kept.write(b"hello")
    left.write(b"hel")
    path = LocalStorage(root).path(kept.publish().digest)
    store.incoming.sweep()
    assert _files(root) == [path]
    left.discard()


def test_a_sweep_beside_living_writers_takes_only_what_nobody_has_written_to_for_long(
    store: BlobStore, root: Path
) -> None:
    old, new = store.writer(), store.writer()
    new.write(b"hello")
    abandoned, living = sorted(store.incoming.folder.iterdir(), key=lambda path: path.stat().st_size)
    os.utime(abandoned, times=(0, time.time() - 7200))
    store.incoming.sweep(timedelta(hours=1))
    assert _files(root) == [living]
    old.discard()
    new.discard()


def test_the_same_content_twice_is_one_blob(store: BlobStore, root: Path) -> None:
    stored = []
    for _ in range(2):
        writer = store.writer()
        writer.write(b"hello")
        stored.append(writer.publish())
    assert stored[0] == stored[1]
    assert len(_files(root)) == 1


def test_a_blob_has_one_row_however_often_it_is_recorded(database: Database) -> None:
    stored = StoredBlob(sha256(b"x"), 1)
    for _ in range(2):
        with database.transaction() as session:
            (announced,) = announce(session, [stored])
        with database.transaction() as session:
            record_blob(session, announced)
    with database.reading() as session:
        assert [(blob.digest, blob.size) for blob in session.query(Blob)] == [(stored.digest, 1)]


def test_a_folder_that_another_process_made_has_its_name_on_disk_before_a_blob_counts(
    store: BlobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LocalStorage(root).path(sha256(b"hello")).parent
    folder.mkdir(parents=True)
    synced = []
    sync = os.fsync

    def noting_sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noting_sync)
    for _ in range(2):
        writer = store.writer()
        writer.write(b"hello")
        writer.publish()
    folders = [path for path in synced if path.is_dir()]
    assert folders == [root / "sha256", root, root.parent, folder, folder]
