"""From an output folder to stored artifacts."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.store.blobs import AnnouncedBlob, BlobStore, StoredBlob
from app.store.jobs import ArtifactFile
from cogram_core.errors import OutputError


def sync_output(output: Path, sign: Callable[[], None]) -> dict[Path, StoredBlob]:
    """What every file of the folder is as a blob; each is on disk before it may get that name.

    Before each file a ``sign`` of life is given, as all of them together may take long.

    Raises:
        OutputError: when the disk refuses, because it is full, say.
    """
    with _disk_told():
        return {path: _synced(path, sign) for path in sorted(output.rglob("*")) if path.is_file()}


def place_output(
    output: Path, files: Mapping[Path, AnnouncedBlob], blobs: BlobStore, sign: Callable[[], None]
) -> list[ArtifactFile]:
    """Moves the files out of the folder into the blob store; on the same disk, without copying. ``sign`` as above.

    Raises:
        OutputError: when the disk refuses.
    """
    with _disk_told():
        for path, blob in files.items():
            sign()
            blobs.place(path, blob, sign)
    return [ArtifactFile(path.relative_to(output).as_posix(), blob) for path, blob in files.items()]


def as_json(value: Any) -> Any:
    """The same document with null for numbers that JSON doesn't have (an infinite loss, say)."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _disk_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"the result can't be stored: {error.strerror}; check the service's disk") from error


def _synced(path: Path, sign: Callable[[], None]) -> StoredBlob:
    sign()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    return StoredBlob(digest, size)
