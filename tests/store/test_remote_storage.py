"""Blobs in a real S3-compatible server: the same promises as on the local disk, and few bytes over the line."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from app.store.blobs import (
    AnnouncedBlob,
    BlobDamaged,
    BlobStore,
    Collector,
    Incoming,
    StorageError,
    StoredBlob,
    record_blob,
)
from app.store.blobs.cache import Cache
from app.store.blobs.remote import RemoteStorage
from app.store.database import Database
from app.store.models import Blob, UploadedFile
from app.store.ownership import LOCAL
from cogram_core.checkpoints.header import read_checkpoint_header
from tests import services
from tests.app.factories import chain, floats, safetensors_file

MANY = 10 * 2**30
PATIENCE = timedelta(seconds=20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where copies lie."""
    return tmp_path / "cache"


@pytest.fixture
def storage(blob_url: str, folder: Path) -> RemoteStorage:
    return RemoteStorage(blob_url, Cache(folder, MANY), PATIENCE)


@pytest.fixture
def blobs(storage: RemoteStorage, sqlite_url: str, tmp_path: Path) -> Iterator[BlobStore]:
    database = Database(sqlite_url)
    yield BlobStore(storage, Incoming(tmp_path / "incoming"), database)
    database.close()


def _brought(blobs: BlobStore, content: bytes) -> AnnouncedBlob:
    writer = blobs.writer()
    writer.write(content)
    return writer.publish()


def _forget_copies(folder: Path) -> None:
    Cache(folder, 0).shrink()


def _copies(folder: Path) -> dict[str, int]:
    """What is cached, and the room that it takes."""
    found = [*folder.glob("whole/*/*"), *folder.glob("headers/*/*"), *folder.glob("documents/*/*")]
    return {f"{path.parts[-3]} {path.name[:4]}": path.stat().st_blocks * 512 for path in found}


def _streamed(storage: RemoteStorage, blob: StoredBlob, begin: int, end: int) -> bytes:
    async def read() -> bytes:
        return b"".join([piece async for piece in storage.stream(blob, begin, end)])

    return asyncio.run(read())


def test_bytes_come_back_as_they_went_whole_and_in_parts(blobs: BlobStore, folder: Path, tmp_path: Path) -> None:
    storage = blobs.storage
    beats: list[bool] = []
    for content in (b"", b"hello", os.urandom(17 * 2**20 + 5)):  # the last one goes in parts
        blob = _brought(blobs, content)
        assert not list(blobs.incoming.folder.iterdir())
        assert storage.has(blob)
        _forget_copies(folder)
        target = tmp_path / f"laid-{blob.size}"
        beats.clear()
        storage.lay(blob, target, lambda: beats.append(True))
        assert len(beats) >= -(-blob.size // (8 * 2**20))  # one a piece
        storage.lay(blob, target)
        assert target.read_bytes() == content
        with storage.whole(blob) as path:
            assert path.read_bytes() == content
        assert not path.exists()
        begin, end = len(content) // 3, max(len(content) - 2, 0)
        assert _streamed(storage, blob, begin, end) == content[begin:end]
    assert {(found.digest, found.size) for found in storage.found()} >= {(blob.digest, blob.size)}
    storage.remove(blob.digest)
    storage.remove(blob.digest)
    assert not storage.has(blob)


def test_headers_come_without_the_tensors(blobs: BlobStore, folder: Path) -> None:
    large = safetensors_file({"layer.weight": floats((2**22, 1))})
    files = {"model.safetensors": _brought(blobs, large), "network.json": _brought(blobs, b'{"layers": []}')}
    _forget_copies(folder)
    for _ in range(2):
        with blobs.storage.headers(files) as paths:
            header = read_checkpoint_header(paths["model.safetensors"])
            assert paths["model.safetensors"].stat().st_size == len(large)
            assert paths["network.json"].read_bytes() == b'{"layers": []}'
        assert [(spec.name, spec.shape) for spec in header.tensors.values()] == [("layer.weight", (2**22, 1))]
    copies = _copies(folder)
    assert sorted(name.split()[0] for name in copies) == ["documents", "headers"]
    assert sum(copies.values()) < 2**20


def test_bytes_that_somebody_calls_a_document_have_their_header_all_the_same(blobs: BlobStore, folder: Path) -> None:
    large = safetensors_file({"layer.weight": floats((9 * 2**20, 1))})
    blob = _brought(blobs, large)
    _forget_copies(folder)
    for name in ("notes.txt", "model.safetensors", "notes.txt"):
        with blobs.storage.headers({name: blob}) as paths:
            assert paths[name].stat().st_size == len(large)
            if name == "model.safetensors":
                assert [*read_checkpoint_header(paths[name]).tensors] == ["layer.weight"]


@pytest.mark.parametrize("start", [b"", b"\x00", b"\xff" * 8, (2**40).to_bytes(8, "little"), b"\x02" + b"\x00" * 7])
def test_a_header_that_lies_is_fetched_no_further_than_it_may_reach(
    blobs: BlobStore, folder: Path, start: bytes
) -> None:
    blob = _brought(blobs, start + b"x" * (len(start) and 300_000))
    _forget_copies(folder)
    with blobs.storage.headers({"a.safetensors": blob}) as paths:
        assert paths["a.safetensors"].stat().st_size == blob.size
        assert paths["a.safetensors"].read_bytes()[:8] == start[:8] + b"x" * (8 - len(start[:8]) if start else 0)


def test_copies_are_given_up_by_age_and_never_while_somebody_holds_one(
    blobs: BlobStore, blob_url: str, folder: Path, tmp_path: Path
) -> None:
    contents = [bytes([number]) * 2**20 for number in range(4)]
    held, *others = (_brought(blobs, content) for content in contents)
    _forget_copies(folder)
    small = RemoteStorage(blob_url, Cache(folder, 2 * 2**20 + 2**18), PATIENCE)
    job = tmp_path / "job"
    small.lay(held, job)
    for blob in others:
        time.sleep(0.02)
        small.lay(blob, tmp_path / "passing")
        (tmp_path / "passing").unlink()
    assert set(_copies(folder)) == {f"whole {blob.digest[:4]}" for blob in (held, others[-1])}
    _forget_copies(folder)
    assert job.read_bytes() == contents[0]
    job.unlink()
    _forget_copies(folder)
    assert _copies(folder) == {}


def test_bytes_that_were_changed_over_there_are_refused(
    blobs: BlobStore, blob_url: str, folder: Path, tmp_path: Path
) -> None:
    blob = _brought(blobs, b"hello")
    _forget_copies(folder)
    obstore.put(from_url(blob_url), f"sha256/{blob.digest[:2]}/{blob.digest}", b"hallo")
    with pytest.raises(BlobDamaged, match="other bytes"):
        blobs.storage.lay(blob, tmp_path / "laid")
    assert not (tmp_path / "laid").exists()
    assert _copies(folder) == {}


def test_what_nobody_refers_to_is_collected_over_there_too(
    database: Database, storage: RemoteStorage, tmp_path: Path
) -> None:
    blobs = BlobStore(storage, Incoming(tmp_path / "incoming"), database)
    kept, loose = _brought(blobs, b"kept"), _brought(blobs, b"loose")
    with database.transaction() as session:
        record_blob(session, kept)
        file = {"kind": "checkpoint", "name": "n", "path": "f", "digest": kept.digest, "size": kept.size}
        session.add(UploadedFile(tenant=LOCAL.tenant, owner=LOCAL.account, **file))
    orphan = _brought(blobs, b"orphan")
    with database.transaction() as session:
        session.query(Blob).filter_by(digest=orphan.digest).delete()
    time.sleep(1.1)  # ages over there are whole seconds
    collector = Collector(database, storage, timedelta())
    assert (collector.collect(), collector.adopt_orphans(), collector.collect()) == (1, 1, 1)
    assert {found.digest for found in storage.found()} == {kept.digest}
    assert not storage.has(loose)


def _large(tmp_path: Path) -> tuple[Path, StoredBlob, bytes]:
    content = os.urandom(2**20) * 64
    file = tmp_path / "large"
    file.write_bytes(content)
    return file, StoredBlob(sha256(content).hexdigest(), len(content)), content


def _beside(step: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            step()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def _in_the_middle(server: services.ObjectStorage) -> None:
    """Waits until the first part of an upload is there."""
    end = time.monotonic() + 30
    while not any(path.is_file() for path in server.folder.glob("blobs/._S3rver_uploads/**/*")):
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_server_that_dies_in_the_middle_of_an_upload_is_told_and_the_file_stays(
    mortal: services.ObjectStorage, folder: Path, tmp_path: Path
) -> None:
    file, blob, content = _large(tmp_path)
    storage = RemoteStorage(mortal.prefix(), Cache(folder, MANY), timedelta(seconds=0.5))
    thread, errors = _beside(lambda: storage.place(file, blob, lambda: None))
    _in_the_middle(mortal)
    mortal.kill()
    thread.join(60)
    assert [type(error) for error in errors] == [StorageError]
    assert file.read_bytes() == content
    for step in (
        lambda: storage.has(blob),
        storage.check,
        lambda: storage.remove(blob.digest),
        lambda: [*storage.found()],
    ):
        with pytest.raises(StorageError):
            step()
    mortal.start()
    storage.check()
    assert not storage.has(blob)
    storage.place(file, blob, lambda: None)
    assert _streamed(storage, blob, 0, blob.size) == content


def test_a_server_that_comes_back_in_time_is_all_that_an_upload_needs(
    mortal: services.ObjectStorage, folder: Path, tmp_path: Path
) -> None:
    file, blob, content = _large(tmp_path)
    storage = RemoteStorage(mortal.prefix(), Cache(folder, 0), timedelta(seconds=60))
    thread, errors = _beside(lambda: storage.place(file, blob, lambda: None))
    _in_the_middle(mortal)
    mortal.kill()
    mortal.start()
    thread.join(90)
    assert errors == []
    with suppress(FileNotFoundError):
        (tmp_path / "laid").unlink()
    storage.lay(blob, tmp_path / "laid")
    assert (tmp_path / "laid").read_bytes() == content


def test_a_storage_can_be_opened_before_it_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    storage = RemoteStorage("s3://blobs/x", Cache(folder, MANY), timedelta(seconds=0.2))
    with pytest.raises(StorageError, match="does not answer"):
        storage.check()


def test_a_chain_is_a_checkpoint_over_there(blobs: BlobStore, folder: Path) -> None:
    blob = _brought(blobs, chain())
    _forget_copies(folder)
    with blobs.storage.headers({"model.safetensors": blob}) as paths:
        assert len(read_checkpoint_header(dict(paths)).tensors) == 4
