"""Blobs: whole or not there, under the digest of what they hold."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from app.store.blobs import BlobStore, StoredBlob, record_blob
from app.store.database import Database
from app.store.models import Blob
from tests.app.factories import sha256


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    """An empty store."""
    return BlobStore(tmp_path / "blobs")


def _files(store: BlobStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


def test_a_blob_lies_under_its_digest_and_can_not_be_written(store: BlobStore) -> None:
    writer = store.writer()
    writer.write(b"he")
    writer.write(memoryview(b"llo"))
    stored = writer.publish()
    assert stored == StoredBlob(sha256(b"hello"), 5)
    path = store.path(stored.digest)
    assert path == store.root / "sha256" / stored.digest[:2] / stored.digest
    assert path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o777 == 0o444
    assert _files(store) == [path]


def test_a_discarded_blob_leaves_nothing(store: BlobStore) -> None:
    writer = store.writer()
    writer.write(b"hello")
    assert len(_files(store)) == 1
    writer.discard()
    assert _files(store) == []


def test_a_blob_that_can_not_be_placed_leaves_nothing(store: BlobStore) -> None:
    (store.root / "sha256").write_bytes(b"in the way")
    writer = store.writer()
    writer.write(b"hello")
    with pytest.raises(OSError, match="sha256"):
        writer.publish()
    assert list(store.incoming.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_blobs_stay(store: BlobStore) -> None:
    kept, left = store.writer(), store.writer()
    kept.write(b"hello")
    left.write(b"hel")
    path = store.path(kept.publish().digest)
    store.sweep_incoming()
    assert _files(store) == [path]
    left.discard()


def test_a_sweep_beside_living_writers_takes_only_what_nobody_has_written_to_for_long(store: BlobStore) -> None:
    old, new = store.writer(), store.writer()
    new.write(b"hello")
    abandoned, living = sorted(store.incoming.iterdir(), key=lambda path: path.stat().st_size)
    os.utime(abandoned, times=(0, time.time() - 7200))
    store.sweep_incoming(timedelta(hours=1))
    assert _files(store) == [living]
    old.discard()
    new.discard()


def test_the_same_content_twice_is_one_blob(store: BlobStore) -> None:
    stored = []
    for _ in range(2):
        writer = store.writer()
        writer.write(b"hello")
        stored.append(writer.publish())
    assert stored[0] == stored[1]
    assert len(_files(store)) == 1


def test_a_blob_has_one_row_however_often_it_is_recorded(database: Database) -> None:
    stored = StoredBlob(sha256(b"x"), 1)
    for _ in range(2):
        with database.transaction() as session:
            record_blob(session, stored)
    with database.reading() as session:
        assert [(blob.digest, blob.size) for blob in session.query(Blob)] == [(stored.digest, 1)]
