"""What travels: a blob by its digest, one that was announced, one that was found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

CHUNK = 1 << 20  # bytes moved at a time: large enough that a thread switch costs nothing beside it


@dataclass(frozen=True)
class StoredBlob:
    """What a blob is: the sha256 of its bytes in hex, and how many there are."""

    digest: str
    size: int


@dataclass(frozen=True)
class AnnouncedBlob(StoredBlob):
    """A blob whose row was there before its bytes were placed; ``since`` tells that row from a later one."""

    since: datetime


@dataclass(frozen=True)
class FoundBlob(StoredBlob):
    """Bytes that lie in a storage, whether or not a row tells of them."""

    modified: datetime


class BlobDamaged(Exception):
    """Bytes that a storage gave back are not those that were stored: asking again doesn't help."""


class BlobGone(Exception):
    """Bytes that were stored are no longer where they were placed: removed by other hands, or lost by the storage."""

    def __init__(self, blob: StoredBlob) -> None:
        super().__init__(f"the bytes of blob {blob.digest} are gone from the storage")
        self.blob = blob


class StorageError(Exception):
    """The storage is out of reach or refuses; the message names no address and no secret."""
