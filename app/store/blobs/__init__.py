"""Content-addressed bytes: what a blob is, where it lies, and the row that says that it counts.

A blob appears whole or not at all, and never changes after that. Who brings one goes through ``BlobStore``, which
announces it in the database before its bytes get their lasting name; docs/decisions/010-collecting-blobs.md tells why.
Knows nothing of what is inside a blob, nor of HTTP.
"""

from app.store.blobs.collector import Collector
from app.store.blobs.content import CHUNK, AnnouncedBlob, BlobDamaged, BlobGone, FoundBlob, StorageError, StoredBlob
from app.store.blobs.incoming import BlobWriter, Incoming
from app.store.blobs.local import LocalStorage
from app.store.blobs.rows import BlobCollected, announce, hold, record_blob
from app.store.blobs.storage import Storage
from app.store.blobs.store import BlobStore, open_blobs, open_storage

__all__ = [
    "CHUNK",
    "AnnouncedBlob",
    "BlobCollected",
    "BlobDamaged",
    "BlobGone",
    "BlobStore",
    "BlobWriter",
    "Collector",
    "FoundBlob",
    "Incoming",
    "LocalStorage",
    "Storage",
    "StorageError",
    "StoredBlob",
    "announce",
    "hold",
    "open_blobs",
    "open_storage",
    "record_blob",
]
