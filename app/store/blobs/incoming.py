"""The folder in which bytes gather until they are whole, on a disk of this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO

from app.store.blobs.content import AnnouncedBlob, StoredBlob

Place = Callable[[Path, StoredBlob], AnnouncedBlob]


class BlobWriter:
    """One blob on its way in; ``publish`` keeps it, ``discard`` leaves nothing behind."""

    def __init__(self, folder: Path, place: Place) -> None:
        self._place = place
        descriptor, name = tempfile.mkstemp(dir=folder)
        self._path = Path(name)
        self._file: IO[bytes] = os.fdopen(descriptor, "wb", buffering=0)
        self._hash = hashlib.sha256()
        self._mutex = threading.Lock()  # a request that is cancelled discards while its thread may still be writing
        self.size = 0

    @property
    def digest(self) -> str:
        """The sha256 of what was written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Appends; blocks on the disk, so it belongs in a thread."""
        with self._mutex:
            self._hash.update(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[self._file.write(rest) :]
            self.size += len(chunk)

    def publish(self) -> AnnouncedBlob:
        """Syncs the bytes to disk, announces the blob and places it."""
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            return self._place(self._path, StoredBlob(self.digest, self.size))
        finally:
            self.discard()

    def discard(self) -> None:
        """Removes what was written; harmless after ``publish``."""
        with self._mutex:
            self._file.close()
            self._path.unlink(missing_ok=True)


class Incoming:
    """``incoming/``: blobs that are not whole yet, and those on their way to their place."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def sweep(self, untouched: timedelta = timedelta()) -> None:
        """Removes what killed processes left half-written: what nobody has written to for that long.

        Without it, all there is; only while no process writes here.
        """
        oldest = time.time() - untouched.total_seconds()
        for leftover in self.folder.iterdir():
            with suppress(FileNotFoundError):  # ended or swept by another in between
                if leftover.stat().st_mtime <= oldest or not untouched:
                    leftover.unlink()

    def free_bytes(self) -> int:
        """What the disk has left."""
        return shutil.disk_usage(self.folder).free
