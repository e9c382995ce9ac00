"""What a place for blobs can do. Local disk and object storage do it each in their own way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from app.store.blobs.content import FoundBlob, StoredBlob

Beat = Callable[[], None]


def unheard() -> None:
    """A beat that nobody waits for."""


class Storage(Protocol):
    """Bytes under their digest. Only ``BlobStore`` places and only the collector removes.

    Where others have removed some, ``headers``, ``whole`` and ``stream`` raise ``BlobGone``.
    """

    def place(self, file: Path, blob: StoredBlob, beat: Beat) -> None:
        """Takes a synced file away from its place and makes it the blob; ``beat`` is called while that takes long."""

    def remove(self, digest: str) -> None:
        """Removes the bytes; harmless where there are none."""

    def has(self, blob: StoredBlob) -> bool:
        """Whether the bytes are there."""

    def found(self) -> Iterator[FoundBlob]:
        """Everything that lies here, in no order."""

    def headers(self, files: Mapping[str, StoredBlob]) -> AbstractContextManager[Mapping[str, Path]]:
        """For each file by its name, a path with its right size and, of a safetensors file, at least its header.

        The paths hold for as long as the block runs.
        """

    def whole(self, blob: StoredBlob) -> AbstractContextManager[Path]:
        """A path with all bytes; it holds for as long as the block runs."""

    def lay(self, blob: StoredBlob, target: Path, beat: Beat = unheard) -> None:
        """Makes ``target`` a path with all bytes that holds until it is removed; ``beat`` is called as bytes come in."""

    def stream(self, blob: StoredBlob, begin: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from ``begin`` to ``end``, in pieces."""

    def address(self, blob: StoredBlob, lasting: timedelta) -> str | None:
        """A link from which anybody may download the blob for that long; None where there are no such links."""

    def check(self) -> None:
        """Raises unless blobs can be placed here."""
