"""The one way in for blobs: announced in the database first, placed second."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.settings import Settings
from app.store.blobs.cache import Cache
from app.store.blobs.content import AnnouncedBlob, StoredBlob
from app.store.blobs.incoming import BlobWriter, Incoming
from app.store.blobs.local import LocalStorage
from app.store.blobs.rows import announce
from app.store.blobs.storage import Storage
from app.store.database import Database

_log = structlog.get_logger(__name__)


class BlobStore:
    """A storage, the folder in which blobs gather, and the database that knows which of them count."""

    def __init__(self, storage: Storage, incoming: Incoming, database: Database) -> None:
        self.storage = storage
        self.incoming = incoming
        self._database = database

    def writer(self) -> BlobWriter:
        """Begins a new blob."""
        return BlobWriter(self.incoming.folder, self.bring)

    def bring(self, file: Path, blob: StoredBlob) -> AnnouncedBlob:
        """Announces and places one blob."""
        (announced,) = self.announce([blob])
        self.place(file, announced)
        return announced

    def announce(self, blobs: Iterable[StoredBlob]) -> list[AnnouncedBlob]:
        """What comes before placing, for several blobs in one transaction; one answer for each, in the same order."""
        wanted = list(blobs)
        with self._database.transaction() as session:
            announced = {blob.digest: blob for blob in announce(session, wanted)}
        return [announced[blob.digest] for blob in wanted]

    def place(self, file: Path, blob: AnnouncedBlob, sign: Callable[[], None] | None = None) -> None:
        """Makes a synced file the blob that it is; the file is gone from its old place afterwards.

        While that takes long, a ``sign`` of life is given now and then.
        """

        def beat() -> None:
            if sign is not None:
                sign()
            self._touch(blob)

        self.storage.place(file, blob, beat)

    def _touch(self, blob: AnnouncedBlob) -> None:
        """Keeps a blob young while it is on its way; a database that is away must not end that way."""
        try:
            self.announce([blob])
        except SQLAlchemyError as error:
            _log.warning("blob.not_touched", digest=blob.digest, error=str(error))


def open_blobs(settings: Settings, database: Database) -> BlobStore:
    """The blobs that the settings name."""
    return BlobStore(open_storage(settings), Incoming(settings.incoming_dir), database)


def open_storage(settings: Settings) -> Storage:
    """Where ``BLOB_URL`` says, or else the local disk."""
    if settings.blob_url is None:
        return LocalStorage(settings.blob_dir)
    from app.store.blobs.remote import RemoteStorage  # its library is large, and the local disk needs none of it

    cache = Cache(settings.blob_cache_dir, settings.blob_cache_bytes)
    return RemoteStorage(settings.blob_url, cache, timedelta(seconds=settings.blob_patience_seconds))
