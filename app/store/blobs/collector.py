"""Takes blobs that nobody refers to and nobody is about to: any number of collectors beside any number of uploads.

docs/decisions/010-collecting-blobs.md goes through what may happen at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice

import structlog
from sqlalchemy import ColumnElement, and_, delete, exists, select
from sqlalchemy.engine import CursorResult
from sqlalchemy.exc import IntegrityError

from app.store.blobs.content import FoundBlob
from app.store.blobs.storage import Storage
from app.store.clock import database_now
from app.store.database import Database
from app.store.models import Base, Blob
from app.store.upserts import insert

_log = structlog.get_logger(__name__)
_BATCH = 500
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Found by the foreign keys, so that no table that is added later can be forgotten here.
_REFERRING = [
    column
    for table in Base.metadata.sorted_tables
    for column in table.columns
    if any(key.target_fullname == "blobs.digest" for key in column.foreign_keys)
]


@dataclass(frozen=True)
class Collector:
    """Looks through one storage and its rows; ``grace`` is longer than placing and recording any blob takes."""

    database: Database
    storage: Storage
    grace: timedelta

    def collect(self, limit: int = _BATCH) -> int:
        """Takes the oldest blobs without a reference, one a transaction; how many it took.

        A file that the disk refuses to remove does not keep the others here: what it said is raised in the end. A storage
        that is out of reach ends the round at once, as every row is held for as long as asking it takes.
        """
        with self.database.reading() as session:
            cutoff = database_now(session) - self.grace
            chosen = select(Blob.digest).where(Blob.touched_at < cutoff, _unreferenced()).order_by(Blob.touched_at)
            digests = session.scalars(chosen.limit(limit)).all()
        taken, refused = 0, None
        for digest in digests:
            try:
                taken += self.take(digest)
            except OSError as error:
                _log.warning("blob.not_removed", digest=digest, error=str(error))
                refused = error
        if refused is not None:
            raise refused
        return taken

    def take(self, digest: str) -> bool:
        """Removes one blob, row and bytes, if it is still old and nobody refers to it; whether it did.

        The row stays locked until the bytes are gone, so that who announces the same blob waits, and places it after.
        """
        try:
            with self.database.transaction() as session:
                cutoff = database_now(session) - self.grace
                still = (Blob.digest == digest, Blob.touched_at < cutoff, _unreferenced())
                taken = session.execute(delete(Blob).where(*still))
                assert isinstance(taken, CursorResult)
                if taken.rowcount != 1:
                    return False
                self.storage.remove(digest)
        except IntegrityError:  # somebody referred to it in this very moment
            return False
        _log.info("blob.collected", digest=digest)
        return True

    def adopt_orphans(self) -> int:
        """Gives old bytes without a row one that is as old as they are, so that they are collected like others.

        A process that was killed between placing and recording leaves a row; only what is older than rows, or was put
        here by other hands, has none.
        """
        found = iter(self.storage.found())
        return sum(self._adopt(batch) for batch in iter(lambda: list(islice(found, _BATCH)), []))

    def _adopt(self, batch: list[FoundBlob]) -> int:
        with self.database.reading() as session:
            cutoff = database_now(session) - self.grace
            old = {blob.digest: blob for blob in batch if blob.modified < cutoff and _SHA256.fullmatch(blob.digest)}
            known = set(session.scalars(select(Blob.digest).where(Blob.digest.in_(old))))
        orphans = [blob for digest, blob in old.items() if digest not in known]
        if not orphans:
            return 0
        with self.database.transaction() as session:
            now = database_now(session)
            rows = [
                {"digest": blob.digest, "size": blob.size, "created_at": now, "touched_at": blob.modified}
                for blob in orphans
            ]
            session.execute(insert(session, Blob).values(rows).on_conflict_do_nothing(index_elements=[Blob.digest]))
        return len(orphans)


def _unreferenced() -> ColumnElement[bool]:
    return and_(*_missing_references())


def _missing_references() -> Iterator[ColumnElement[bool]]:
    for column in _REFERRING:
        yield ~exists().where(column == Blob.digest)
