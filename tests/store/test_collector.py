"""What nobody needs is collected, and never a blob in use or about to be, whatever happens at the same moment."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from app.store import jobs
from app.store.blobs import (
    AnnouncedBlob,
    BlobCollected,
    BlobStore,
    Collector,
    Incoming,
    LocalStorage,
    StorageError,
    StoredBlob,
    announce,
    record_blob,
)
from app.store.database import Database
from app.store.models import Blob, Checkpoint, CheckpointFile, Dataset, UploadedFile
from app.store.ownership import LOCAL
from tests.store.factories import running

HOUR = timedelta(hours=1)
NONE = timedelta()
OWNED = {"tenant": LOCAL.tenant, "owner": LOCAL.account}


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "blobs")


@pytest.fixture
def blobs(storage: LocalStorage, database: Database) -> BlobStore:
    return BlobStore(storage, Incoming(storage.root / "incoming"), database)


def _brought(blobs: BlobStore, content: bytes) -> AnnouncedBlob:
    writer = blobs.writer()
    writer.write(content)
    return writer.publish()


def _refer(database: Database, blob: AnnouncedBlob, path: str = "f") -> None:
    with database.transaction() as session:
        record_blob(session, blob)
        session.merge(UploadedFile(kind="checkpoint", name="n", path=path, digest=blob.digest, size=blob.size, **OWNED))


def _forget(database: Database, path: str = "f") -> None:
    with database.transaction() as session:
        file = session.get(UploadedFile, (LOCAL.tenant, "checkpoint", "n", path))
        if file is not None:
            session.delete(file)


def _rows(database: Database) -> set[str]:
    with database.reading() as session:
        return {blob.digest for blob in session.query(Blob)}


def _files(storage: LocalStorage) -> set[str]:
    return {found.digest for found in storage.found()}


def test_old_blobs_without_a_reference_go_and_young_ones_stay(
    database: Database, blobs: BlobStore, storage: LocalStorage
) -> None:
    kept, loose = _brought(blobs, b"kept"), _brought(blobs, b"loose")
    _refer(database, kept)
    assert Collector(database, storage, HOUR).collect() == 0
    assert Collector(database, storage, NONE).collect() == 1
    assert (_rows(database), _files(storage)) == ({kept.digest}, {kept.digest})
    assert not storage.has(loose)


def test_a_file_that_can_not_be_removed_keeps_no_other_here(
    database: Database, blobs: BlobStore, storage: LocalStorage
) -> None:
    stuck, loose = _brought(blobs, b"stuck"), _brought(blobs, b"loose")
    path = storage.path(stuck.digest)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match=r"directory|permitted"):
        Collector(database, storage, NONE).collect()
    assert _rows(database) == {stuck.digest}
    assert not storage.has(loose)
    path.rmdir()
    assert Collector(database, storage, NONE).collect() == 1
    assert _rows(database) == set()


def test_every_kind_of_reference_keeps_a_blob(database: Database, blobs: BlobStore, storage: LocalStorage) -> None:
    names = ("loose", "checkpoint", "dataset", "artifact")
    brought = {name: _brought(blobs, name.encode()) for name in names}
    _refer(database, brought["loose"])
    claim = running(database)
    with database.transaction() as session:
        checkpoint = Checkpoint(id="ckpt_1", name="n", sha256="", tensors=1, parameters=1, dtypes=[], **OWNED)
        one = {"digest": brought["checkpoint"].digest, "size": 1}
        checkpoint.files = [CheckpointFile(path="f", **one)]
        one = {"digest": brought["dataset"].digest, "size": 1, "target_shape": [], "input_shape": []}
        dataset = Dataset(id="data_1", name="n", path="f", examples=1, loss="mean_squared_error", **one, **OWNED)
        session.add_all([checkpoint, dataset])
        jobs.finish_succeeded(session, claim, {}, [jobs.ArtifactFile("f", brought["artifact"])])
    assert Collector(database, storage, NONE).collect() == 0
    assert _files(storage) == {blob.digest for blob in brought.values()}


def test_old_bytes_without_a_row_are_collected_and_foreign_files_are_left_alone(
    database: Database, blobs: BlobStore, storage: LocalStorage
) -> None:
    kept = _brought(blobs, b"kept")
    _refer(database, kept)
    old, young, foreign = (storage.path(name) for name in ("ab" * 32, "ac" * 32, "abcd-notes.txt"))
    for path in (old, young, foreign):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left by a crash")
    for path in (old, foreign, storage.path(kept.digest)):
        os.utime(path, times=(0, time.time() - 7200))
    collector = Collector(database, storage, HOUR)
    assert (collector.adopt_orphans(), collector.collect()) == (1, 1)
    assert _files(storage) == {kept.digest, young.name, foreign.name}
    assert _rows(database) == {kept.digest}


def test_a_row_without_bytes_goes(database: Database, storage: LocalStorage) -> None:
    with database.transaction() as session:
        announce(session, [StoredBlob("ab" * 32, 1)])
    assert Collector(database, storage, NONE).collect() == 1
    assert _rows(database) == set()


def test_bytes_that_can_not_be_removed_keep_their_row_for_the_next_round(
    database: Database, blobs: BlobStore, storage: LocalStorage
) -> None:
    blob = _brought(blobs, b"x")
    paused = Paused(storage.root, fail=True)
    with pytest.raises(StorageError):
        Collector(database, paused, NONE).collect()
    assert _rows(database) == {blob.digest}
    assert Collector(database, storage, NONE).collect() == 1
    assert (_rows(database), _files(storage)) == (set(), set())


class Paused(LocalStorage):
    """Lets a test in between the row's removal and its commit; or dies there."""

    def __init__(self, root: Path, fail: bool = False) -> None:
        super().__init__(root)
        self.entered, self.proceed = threading.Event(), threading.Event()
        self._fail = fail

    def remove(self, digest: str) -> None:
        self.entered.set()
        if self._fail:
            raise StorageError("out of reach")
        super().remove(digest)
        assert self.proceed.wait(20)


@contextmanager
def _beside(step: Callable[[], object]) -> Iterator[list[object]]:
    """Runs a step in a thread while the block runs; what came of it is in the list afterwards."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(step())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield results
    thread.join(30)
    assert not thread.is_alive()


def test_who_announces_a_blob_that_is_being_collected_waits_and_places_it_afterwards(
    database: Database, blobs: BlobStore, storage: LocalStorage
) -> None:
    before = _brought(blobs, b"x")
    paused = Paused(storage.root)
    with _beside(lambda: Collector(database, paused, NONE).take(before.digest)) as taken:
        assert paused.entered.wait(20)
        with _beside(lambda: _brought(blobs, b"x")) as brought:
            time.sleep(0.3)
            assert brought == []  # it waits, so its bytes can't be those that are removed
            paused.proceed.set()
    assert taken == [True]
    (after,) = brought
    assert isinstance(after, AnnouncedBlob)
    _refer(database, after)
    assert storage.path(after.digest).read_bytes() == b"x"
    with pytest.raises(BlobCollected):
        _refer(database, before, "late")  # its own bytes went; that there are others is luck


def test_a_collector_waits_for_an_announcement_and_leaves_the_blob(
    database: Database, blobs: BlobStore, storage: LocalStorage
) -> None:
    blob = _brought(blobs, b"x")
    time.sleep(1.1)
    collector = Collector(database, storage, timedelta(seconds=1))
    with database.transaction() as session:
        announce(session, [blob])
        with _beside(lambda: collector.take(blob.digest)) as taken:
            time.sleep(0.3)
            assert taken == []
            session.commit()
    assert taken == [False]
    assert storage.has(blob)


def test_what_a_collector_took_can_not_be_referred_to_by_the_announcement_before(
    database: Database, blobs: BlobStore, storage: LocalStorage
) -> None:
    blob = _brought(blobs, b"x")
    Collector(database, storage, NONE).collect()
    with pytest.raises(BlobCollected):
        _refer(database, blob)
    assert _rows(database) == set()


def test_a_reference_that_nobody_announced_still_keeps_the_blob_or_fails_cleanly(
    postgresql_url: str, tmp_path: Path
) -> None:
    """No part of the service does so; the foreign key stands behind the protocol."""
    database, storage = Database(postgresql_url), LocalStorage(tmp_path / "blobs")
    blob = _brought(BlobStore(storage, Incoming(tmp_path / "incoming"), database), b"x")

    def add(path: str) -> None:
        with database.transaction() as session:
            session.add(UploadedFile(kind="dataset", name="n", path=path, digest=blob.digest, size=1, **OWNED))

    with database.transaction() as session:
        session.add(UploadedFile(kind="dataset", name="n", path="a", digest=blob.digest, size=1, **OWNED))
        session.flush()
        with _beside(lambda: Collector(database, storage, NONE).take(blob.digest)) as taken:
            time.sleep(0.3)
            assert taken == []
            session.commit()
    assert taken == [False]
    with database.transaction() as session:
        session.query(UploadedFile).delete()
    paused = Paused(storage.root)
    with _beside(lambda: Collector(database, paused, NONE).take(blob.digest)) as taken:
        assert paused.entered.wait(20)
        with _beside(lambda: add("b")) as added:
            paused.proceed.set()
    assert taken == [True]
    assert isinstance(added[0], IntegrityError)
    database.close()


def test_any_number_of_uploads_and_collectors_at_once_never_lose_a_blob_that_counts(
    database: Database, blobs: BlobStore, storage: LocalStorage
) -> None:
    """Without any grace, a few contents, references that come and go: a reference always has its bytes."""
    contents = [bytes([number]) * 100 for number in range(3)]
    end = time.monotonic() + 2.0
    faults: list[str] = []
    counts = {"kept": 0, "collected before": 0, "taken": 0}

    def upload(seed: int) -> None:
        chance, path = random.Random(seed), str(seed)
        while time.monotonic() < end:
            content = chance.choice(contents)
            try:
                _refer(database, _brought(blobs, content), path)
            except BlobCollected:
                counts["collected before"] += 1
                continue
            counts["kept"] += 1
            time.sleep(chance.random() / 200)
            found = storage.path(hashlib.sha256(content).hexdigest())
            if not found.is_file() or found.read_bytes() != content:
                faults.append(f"{path}: {found.name} is gone")
            _forget(database, path)

    def collect() -> None:
        collector = Collector(database, storage, NONE)
        while time.monotonic() < end:
            collector.adopt_orphans()
            counts["taken"] += collector.collect()

    def guarded(step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:
            faults.append(repr(error))

    steps = [collect, collect, *((lambda seed=seed: upload(seed)) for seed in range(4))]
    threads = [threading.Thread(target=guarded, args=[step]) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert counts["kept"]
    assert counts["taken"]
    collector = Collector(database, storage, NONE)
    for path in range(4):
        _forget(database, str(path))
    collector.adopt_orphans()
    collector.collect()
    assert (_rows(database), _files(storage)) == (set(), set())
