"""Copies of far blobs on the local disk, the least recently used given up first.

Who uses a copy holds a hard link to it: as long as there is one, the copy has more than one name, and giving it up
would free nothing, so that it stays. No list of users is kept, and a process that dies holds nothing but links in a
folder that is cleared away.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Literal

from app.store.blobs.content import CHUNK, BlobDamaged, StoredBlob
from app.store.blobs.storage import Beat, unheard

Fill = Callable[[IO[bytes]], None]
_LOOK_SECONDS = 10.0
_BEAT_SECONDS = 1.0
_ABANDONED = timedelta(days=1)


class Cache:
    """A folder of copies, by kind and digest: whole ones, and ones of which only what is read first is there.

    What is read first is another part of the same bytes when they are called a document and not tensors.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def whole(self, blob: StoredBlob, target: Path, fill: Fill, beat: Beat) -> None:
        """Makes ``target`` a copy with all bytes; ``fill`` writes them if there is none yet, and they are checked.

        Checking takes long, too, where there are many: ``beat`` is called meanwhile.
        """

        def checked(file: IO[bytes]) -> None:
            fill(file)
            file.seek(0)
            digest = hashlib.sha256()
            for piece in file_pieces(file, blob.size or 1, beat, _BEAT_SECONDS):
                digest.update(piece)
            if digest.hexdigest() != blob.digest:
                raise BlobDamaged(f"blob {blob.digest} came back with other bytes than were stored")

        self._link(self._path("whole", blob), target, checked)

    def header(self, blob: StoredBlob, target: Path, kind: Literal["headers", "documents"], fill: Fill) -> None:
        """Makes ``target`` a file of the right size; ``fill`` writes its beginning, and the rest takes no room."""

        def sparse(file: IO[bytes]) -> None:
            file.truncate(blob.size)
            fill(file)

        whole = self._path("whole", blob)
        self._link(whole if whole.is_file() else self._path(kind, blob), target, sparse)

    def keep(self, file: Path, blob: StoredBlob) -> None:
        """Takes a file with all bytes away from its place, as the copy that the next one asks for."""
        path = self._path("whole", blob)
        path.parent.mkdir(parents=True, exist_ok=True)
        file.chmod(0o444)
        os.utime(file)
        file.replace(path)
        self._grown(blob.size)

    def has(self, blob: StoredBlob) -> bool:
        """Whether there is a whole copy."""
        return self._path("whole", blob).is_file()

    @contextmanager
    def room(self) -> Iterator[Path]:
        """A folder for links that are wanted for as long as the block runs."""
        held = self._folder / "held"
        held.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=held))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def shrink(self) -> None:
        """Gives up copies that nobody uses, the least recently used first, until the rest keeps to the limit."""
        self._clear_abandoned()
        copies = []
        for path in self._folder.glob("*/??/*"):
            with suppress(FileNotFoundError):  # another process may be at it, too
                seen = path.stat()
                copies.append((seen.st_mtime, seen.st_blocks * 512, seen.st_nlink, path))
        excess = sum(size for _, size, _, _ in copies) - self._limit
        for _, size, links, path in sorted(copies):
            if excess <= 0:
                return
            if links == 1:
                path.unlink(missing_ok=True)
                excess -= size

    def _link(self, path: Path, target: Path, fill: Fill) -> None:
        with suppress(FileNotFoundError):
            os.link(path, target)
            os.utime(target)  # the same file under another name: used just now
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._folder)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                fill(file)
                file.flush()
                os.fsync(
                    file.fileno()
                )  # else a power cut may leave the name, and zeros under it that nobody checks again
            Path(name).chmod(0o444)
            os.link(name, target)  # first, so that nobody finds it without a user
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        self._grown(target.stat().st_blocks * 512)

    def _grown(self, size: int) -> None:
        """Shrinks after something large, and else now and then: looking at every copy takes longer than a small blob."""
        looked = self._folder / "looked"
        with suppress(FileNotFoundError):
            if size <= self._limit // 100 and time.time() < looked.stat().st_mtime + _LOOK_SECONDS:
                return
        looked.touch()
        self.shrink()

    def _path(self, kind: str, blob: StoredBlob) -> Path:
        return self._folder / kind / blob.digest[:2] / blob.digest

    def _clear_abandoned(self) -> None:
        """What killed processes left: half-written copies, and links that nobody follows any more."""
        oldest = time.time() - _ABANDONED.total_seconds()
        for path in [*self._folder.glob("tmp*"), *self._folder.glob("held/*")]:
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def copy_pieces(pieces: Iterator[bytes], file: IO[bytes], beat: Beat = unheard) -> None:
    """Writes one piece after the other; calls ``beat`` for each."""
    for piece in pieces:
        file.write(piece)
        beat()


def file_pieces(file: IO[bytes], size: int, beat: Beat, every: float) -> Iterator[bytes]:
    """A file piece by piece; calls ``beat`` between two pieces when the last call is ``every`` seconds ago."""
    beaten = time.monotonic()
    while piece := file.read(min(size, 8 * CHUNK)):
        if time.monotonic() > beaten + every:
            beat()
            beaten = time.monotonic()
        yield piece
