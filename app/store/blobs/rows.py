"""The rows of blobs, and the two moments at which bytes on their way in touch them: announced, and recorded.

Between the two the bytes get their lasting name. A collector takes only rows that nobody touched for long, and holds
the row while it removes the bytes; docs/decisions/010-collecting-blobs.md has the whole argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from app.store.blobs.content import AnnouncedBlob, StoredBlob
from app.store.models import Blob, UtcDateTime, utc_now
from app.store.upserts import insert


class BlobCollected(Exception):
    """The blob was taken by a collector between its announcement and now: placing it took longer than the grace."""


def announce(session: Session, blobs: Iterable[StoredBlob]) -> list[AnnouncedBlob]:
    """Makes or touches the rows of blobs that are about to be placed; they are placed once this is committed.

    Waits for a collector that holds one of the rows, and gives the blob a new row then.
    """
    announced = {}
    for blob in sorted(set(blobs), key=lambda blob: blob.digest):  # always in one order, so that none waits in a circle
        now = _now(session)
        values = {"digest": blob.digest, "size": blob.size, "created_at": now, "touched_at": now}
        announcing = insert(session, Blob).values(values)
        touched = announcing.on_conflict_do_update(index_elements=[Blob.digest], set_={"touched_at": now})
        since = session.scalars(touched.returning(Blob.created_at)).one()
        announced[blob.digest] = AnnouncedBlob(blob.digest, blob.size, since)
    return list(announced.values())


def record_blob(session: Session, blob: AnnouncedBlob) -> None:
    """Touches the row again, in the transaction that refers to the blob, and holds it until that ends.

    Raises:
        BlobCollected: when the row of the announcement is gone, and the bytes with it.
    """
    same = (Blob.digest == blob.digest, Blob.created_at == blob.since)
    touched = session.execute(update(Blob).where(*same).values(touched_at=_now(session)))
    assert isinstance(touched, CursorResult)
    if touched.rowcount != 1:
        raise BlobCollected(f"blob {blob.digest} was collected before it was recorded")


def hold(session: Session, digests: Iterable[str]) -> set[str]:
    """Touches the rows of blobs that are there, and holds them until the transaction ends; which of them there are."""
    found = set()
    for digest in sorted(set(digests)):  # in the order of announcements
        touched = session.execute(update(Blob).where(Blob.digest == digest).values(touched_at=_now(session)))
        assert isinstance(touched, CursorResult)
        if touched.rowcount == 1:
            found.add(digest)
    return found


def _is_postgresql(session: Session) -> bool:
    return session.get_bind().dialect.name == "postgresql"


def _now(session: Session) -> datetime | ColumnElement[Any]:
    """The database's present, so that hosts whose clocks differ agree on ages; SQLite has one host."""
    return func.clock_timestamp(type_=UtcDateTime()) if _is_postgresql(session) else utc_now()
