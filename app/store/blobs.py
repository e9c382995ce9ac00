"""Content-addressed files: written beside, synced, then renamed to the sha256 of what they hold.

A blob appears whole or not at all, and never changes after that. Rows in ``blobs`` say which of them count.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.store.models import Blob, utc_now

CHUNK = 1 << 20  # bytes moved at a time: large enough that a thread switch costs nothing beside it


@dataclass(frozen=True)
class StoredBlob:
    """What a blob is: the sha256 of its bytes in hex, and how many there are."""

    digest: str
    size: int


class BlobWriter:
    """One blob on its way in; ``publish`` keeps it, ``discard`` leaves nothing behind."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        descriptor, name = tempfile.mkstemp(dir=store.incoming)
        self._path = Path(name)
        self._file: IO[bytes] = os.fdopen(descriptor, "wb", buffering=0)
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        """The sha256 of what was written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Appends; blocks on the disk, so it belongs in a thread."""
        self._hash.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.size += len(chunk)

    def publish(self) -> StoredBlob:
        """Syncs the bytes to disk and gives them their lasting name."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            stored = StoredBlob(self.digest, self.size)
            self._store.place(self._path, stored.digest)
        except BaseException:
            self.discard()
            raise
        return stored

    def discard(self) -> None:
        """Removes what was written; harmless after ``publish``."""
        self._file.close()
        self._path.unlink(missing_ok=True)


class BlobStore:
    """A folder of blobs: ``sha256/ab/abcd…``, and ``incoming/`` for those not finished."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / "incoming"
        self.incoming.mkdir(parents=True, exist_ok=True)

    def path(self, digest: str) -> Path:
        """Where the blob lies, whether or not it is there."""
        return self.root / "sha256" / digest[:2] / digest

    def writer(self) -> BlobWriter:
        """Begins a new blob."""
        return BlobWriter(self)

    def place(self, path: Path, digest: str) -> None:
        """Renames a synced file to its digest, atomically, and syncs the folders that name it."""
        target = self.path(digest)
        if not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            _sync_folder(target.parent.parent)
            _sync_folder(self.root)
        path.chmod(0o444)
        path.replace(target)
        _sync_folder(target.parent)

    def sweep_incoming(self, untouched: timedelta = timedelta()) -> None:
        """Removes what killed processes left half-written: what nobody has written to for that long.

        Without it, all there is; only while no process writes here.
        """
        oldest = time.time() - untouched.total_seconds()
        for leftover in self.incoming.iterdir():
            with suppress(FileNotFoundError):  # ended or swept by another in between
                if leftover.stat().st_mtime <= oldest or not untouched:
                    leftover.unlink()

    def free_bytes(self) -> int:
        """What the disk has left."""
        return shutil.disk_usage(self.root).free


def record_blob(session: Session, stored: StoredBlob) -> None:
    """Makes sure that the blob has its row; two transactions may do so at once."""
    bind = session.get_bind()
    insert = postgresql.insert if bind.dialect.name == "postgresql" else sqlite.insert
    values = {"digest": stored.digest, "size": stored.size, "created_at": utc_now()}
    session.execute(insert(Blob).values(values).on_conflict_do_nothing(index_elements=[Blob.digest]))


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
