"""Bytes of resumable uploads, gathered on a disk of this machine over any number of requests.

Each upload has two files: ``{id}.part`` with its bytes, and ``{id}.mark`` that says how many of them are *kept*. The mark
moves only after the bytes below it were synced, and is synced itself before anybody is told of it. So an offset that was
told once holds after a SIGKILL and after a power cut, on file systems that bring a file's size to disk before its data,
too; what lies beyond the mark, unsynced or not yet checked, is cut off by whoever opens the upload next. The file's mere
size would not do: after a crash it may count bytes of a chunk whose checksum was never compared.

Who appends holds a lock on the mark, which the system takes back when its holder dies; several processes agree by it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.store.syncing import sync_folder

if TYPE_CHECKING:
    from hashlib import _Hash

_READ = 1 << 20
_REMEMBERED = 1024  # digests half-way; one costs some 200 bytes
_TRIES = 100


class UploadBusy(Exception):
    """Another request, of this process or another, appends to the upload."""


class NotStaged(Exception):
    """No bytes are gathered here: the upload has ended, or was begun on another machine's disk."""


@dataclass(frozen=True)
class Mark:
    """How many bytes are kept; and of all of them the sha256, noted before they leave for the blobs."""

    kept: int = 0
    digest: str | None = None


class Staging:
    """The folder of uploads under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._digests: OrderedDict[str, tuple[int, _Hash]] = OrderedDict()
        self._guard = threading.Lock()

    def create(self, upload_id: str) -> None:
        """Makes room for a new upload; its name is on disk when this returns."""
        with self.part(upload_id).open("xb"):
            pass
        try:
            with self._mark(upload_id).open("xb") as file:
                file.write(_written(Mark()))
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            self.discard(upload_id)
            raise
        sync_folder(self.folder)

    def kept(self, upload_id: str) -> Mark:
        """How the upload stands, without a lock; raises NotStaged without one."""
        for _ in range(_TRIES):
            try:
                mark = _read(self._mark(upload_id).read_bytes())
            except FileNotFoundError as error:
                raise NotStaged(upload_id) from error
            if mark is not None:  # else it was read in the very moment in which it was written
                return mark
        return Mark()  # torn by a power cut: nothing is known to be kept

    def open(self, upload_id: str) -> Appender:
        """The upload for oneself, until it is released.

        Raises:
            UploadBusy: at once, when somebody else has it.
            NotStaged: when it isn't here, or no longer.
        """
        path = self._mark(upload_id)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotStaged(upload_id) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.stat()
            return Appender(self, upload_id, descriptor)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UploadBusy(upload_id) from error
        except FileNotFoundError as error:  # ended before the lock was ours; ids are never given twice
            os.close(descriptor)
            raise NotStaged(upload_id) from error
        except BaseException:
            os.close(descriptor)
            raise

    def part(self, upload_id: str) -> Path:
        """Where the bytes lie."""
        return self.folder / f"{upload_id}.part"

    def discard(self, upload_id: str) -> None:
        """Removes what is here of the upload; the caller holds it, or it was never told to anybody."""
        self.forget(upload_id)
        self.part(upload_id).unlink(missing_ok=True)
        self._mark(upload_id).unlink(missing_ok=True)

    def found(self) -> Iterator[tuple[str, float]]:
        """Ids of all uploads that have files here, each with the time of its last change."""
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # ended meanwhile
                yield path.stem, path.stat().st_mtime

    def remember(self, upload_id: str, size: int, digest: _Hash) -> None:
        """Keeps a digest half-way for the next request, so that the bytes need not be read again."""
        with self._guard:
            self._digests[upload_id] = size, digest
            self._digests.move_to_end(upload_id)
            if len(self._digests) > _REMEMBERED:
                self._digests.popitem(last=False)

    def recall(self, upload_id: str, size: int) -> _Hash | None:
        """The digest of the first ``size`` bytes, if this process has it; another may have appended since."""
        with self._guard:
            known, digest = self._digests.get(upload_id, (-1, None))
        if digest is not None and known == size:
            return digest.copy()
        return hashlib.sha256() if size == 0 else None

    def forget(self, upload_id: str) -> None:
        """Lets go of a digest half-way."""
        with self._guard:
            self._digests.pop(upload_id, None)

    def _mark(self, upload_id: str) -> Path:
        return self.folder / f"{upload_id}.mark"


class Appender:
    """One upload, held by one request. Its methods block on the disk, so they belong in threads."""

    def __init__(self, staging: Staging, upload_id: str, lock: int) -> None:
        self._staging = staging
        self._id = upload_id
        self._lock = lock
        self._mutex = threading.Lock()  # a request that is cancelled ends while its thread may still be writing
        self.mark = _read(os.pread(lock, 4096, 0)) or Mark()
        self.part = staging.part(upload_id)
        self.written = self.mark.kept
        self._digest = staging.recall(upload_id, self.written)
        self._file = self._opened()

    @property
    def is_placed(self) -> bool:
        """Whether the bytes have left for the blobs."""
        return self._file < 0

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Appends; when the disk takes only some of it, that much is appended before the error comes."""
        with self._mutex:
            rest = memoryview(chunk)
            while rest:
                count = os.pwrite(self._file, rest, self.written)
                if self._digest is not None:
                    self._digest.update(rest[:count])
                self.written += count
                rest = rest[count:]

    def keep(self) -> None:
        """Syncs what was written, then says that it is kept."""
        with self._mutex:
            self._keep()

    def drop(self) -> None:
        """Takes back what was written since it was last kept."""
        with self._mutex:
            self._cut()

    def whole_digest(self) -> str:
        """The sha256 of all that is kept; read again from the disk if another process, or one before, wrote it."""
        with self._mutex:
            if self._digest is None:
                self._digest = hashlib.sha256()
                for begin in range(0, self.written, _READ):
                    self._digest.update(os.pread(self._file, min(_READ, self.written - begin), begin))
            return self._digest.hexdigest()

    def note(self, digest: str) -> None:
        """Writes down the digest, so that the upload can be ended even if its bytes have left already."""
        with self._mutex:
            self._record(Mark(self.mark.kept, digest))

    def discard(self) -> None:
        """Removes the upload's files and lets it go."""
        with self._mutex:
            if self._lock >= 0:
                self._staging.discard(self._id)
                self._close()

    def release(self, keep: bool = True) -> None:
        """Lets the upload go; what was written is kept, or dropped. Harmless when it was let go before."""
        with self._mutex:
            if self._lock < 0:
                return
            try:
                if keep:
                    self._keep()
                elif not self.is_placed:
                    self._cut()
            finally:
                self._close()

    def _opened(self) -> int:
        """The file with the bytes, without those that were never kept; -1 when they have become a blob already."""
        try:
            descriptor = os.open(self.part, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if self.mark.digest is None:
                raise NotStaged(self._id) from error
            return -1
        if os.fstat(descriptor).st_size < self.mark.kept:
            os.close(descriptor)
            raise NotStaged(self._id)  # somebody has shortened it; what is gone can't be told from what is there
        os.ftruncate(descriptor, self.mark.kept)
        return descriptor

    def _keep(self) -> None:
        if self.written == self.mark.kept:
            return
        try:
            os.fdatasync(self._file)
        except OSError:  # what it could not write it may forget, so that the next sync would wrongly succeed
            self._cut()
            raise
        self._record(Mark(self.written))
        if self._digest is not None:
            self._staging.remember(self._id, self.written, self._digest.copy())

    def _cut(self) -> None:
        os.ftruncate(self._file, self.mark.kept)
        self.written = self.mark.kept
        self._digest = self._staging.recall(self._id, self.written)

    def _record(self, mark: Mark) -> None:
        os.pwrite(self._lock, _written(mark), 0)
        os.fdatasync(self._lock)
        self.mark = mark

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        # A child that was forked just now has the lock open, too, until it runs its program: closing would leave it held.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        self._file = self._lock = -1


def _written(mark: Mark) -> bytes:
    """Always the same length, so that it never needs room on a full disk; twice, so that a torn reading shows."""
    line = f"{mark.kept:020d} {mark.digest or '-' * 64}\n"
    return (line * 2).encode()


def _read(content: bytes) -> Mark | None:
    first, _, second = content.decode("ascii", "replace").partition("\n")
    if second != first + "\n" or not first:
        return None
    kept, _, digest = first.partition(" ")
    return Mark(int(kept), None if digest.startswith("-") else digest)
