"""Blobs on the local disk: ``sha256/ab/abcd…``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from app.store.blobs.content import CHUNK, BlobGone, FoundBlob, StoredBlob
from app.store.blobs.storage import Beat, unheard
from app.store.syncing import sync_folder


class LocalStorage:
    """A folder of read-only files, each renamed into it when it was whole."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folder = root / "sha256"
        self._synced: set[Path] = set()  # folders, 256 at most, whose names are known to be on disk

    def path(self, digest: str) -> Path:
        """Where the blob lies, whether or not it is there."""
        return self._folder / digest[:2] / digest

    def place(self, file: Path, blob: StoredBlob, beat: Beat) -> None:  # noqa: ARG002  # a rename takes no time
        """Renames the file, atomically, and syncs the folders that name it."""
        target = self.path(blob.digest)
        # One that is there may have been made by another process that has not come to sync what names it.
        if target.parent not in self._synced or not target.parent.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self._folder, self.root, self.root.parent):
                sync_folder(folder)
            self._synced.add(target.parent)
        file.chmod(0o444)
        file.replace(target)
        sync_folder(target.parent)

    def remove(self, digest: str) -> None:
        """Removes the file. Who has it open, or laid out under another name of the disk, goes on reading."""
        self.path(digest).unlink(missing_ok=True)

    def has(self, blob: StoredBlob) -> bool:
        """Whether the file is there."""
        return self.path(blob.digest).is_file()

    def found(self) -> Iterator[FoundBlob]:
        """Every file, with the time of its last writing."""
        for path in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):  # removed by another collector meanwhile
                seen = path.stat()
                yield FoundBlob(path.name, seen.st_size, datetime.fromtimestamp(seen.st_mtime, UTC))

    @contextmanager
    def headers(self, files: Mapping[str, StoredBlob]) -> Iterator[Mapping[str, Path]]:
        """The files themselves."""
        yield {name: self._there(blob) for name, blob in files.items()}

    @contextmanager
    def whole(self, blob: StoredBlob) -> Iterator[Path]:
        """The file itself."""
        yield self._there(blob)

    def lay(self, blob: StoredBlob, target: Path, beat: Beat = unheard) -> None:  # noqa: ARG002  # a link takes no time
        """A symbolic link to the file."""
        if not target.is_symlink():  # one checkpoint may be referred to more than once
            target.symlink_to(self.path(blob.digest))

    async def stream(self, blob: StoredBlob, begin: int, end: int) -> AsyncIterator[bytes]:
        """Read piece by piece in a thread; the next one while the caller sends one."""
        loop = asyncio.get_running_loop()
        try:
            file = await loop.run_in_executor(None, os.open, self.path(blob.digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise BlobGone(blob) from error
        coming = None
        try:
            while begin < end:
                coming = coming or loop.run_in_executor(None, os.pread, file, min(CHUNK, end - begin), begin)
                piece, coming = await coming, None
                if not piece:  # it is shorter than it was when it was stored
                    raise BlobGone(blob)
                begin += len(piece)
                if begin < end:
                    coming = loop.run_in_executor(None, os.pread, file, min(CHUNK, end - begin), begin)
                yield piece
        finally:
            if coming is not None:  # nobody takes it any more, but the file must not be closed under it
                await asyncio.wait([coming])
            os.close(file)

    def _there(self, blob: StoredBlob) -> Path:
        if not self.has(blob):
            raise BlobGone(blob)
        return self.path(blob.digest)

    def address(self, blob: StoredBlob, lasting: timedelta) -> str | None:  # noqa: ARG002
        """Nobody but this service reads the disk."""
        return None

    def check(self) -> None:
        """Nothing beyond the folder for incoming files, which lies on the same disk."""
