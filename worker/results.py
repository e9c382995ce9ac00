"""From an output folder to stored artifacts."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

from app.store.blobs import BlobStore
from app.store.jobs import ArtifactFile
from cogram_core.errors import OutputError


def store_output(output: Path, blobs: BlobStore) -> list[ArtifactFile]:
    """Moves every file of the folder into the blob store, without copying; each is on disk before it has its name.

    Raises:
        OutputError: when the disk refuses, because it is full, say.
    """
    files = sorted(path for path in output.rglob("*") if path.is_file())
    try:
        return [_store(path, path.relative_to(output).as_posix(), blobs) for path in files]
    except OSError as error:
        raise OutputError(f"the result can't be stored: {error.strerror}; check the service's disk") from error


def as_json(value: Any) -> Any:
    """The same document with null for numbers that JSON doesn't have (an infinite loss, say)."""
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _store(path: Path, name: str, blobs: BlobStore) -> ArtifactFile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
        size = os.fstat(file.fileno()).st_size
    blobs.place(path, digest)
    return ArtifactFile(name, digest, size)
