"""Every select and write on the rows of resumable uploads."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete as sql_delete
from sqlalchemy import update
from sqlalchemy.orm import Session

from app.store.clock import database_now
from app.store.ids import is_id
from app.store.models import Upload


def get(session: Session, tenant: str, upload_id: str) -> Upload | None:
    """By id; None if it is another tenant's."""
    found = session.get(Upload, upload_id) if is_id(upload_id) else None
    return found if found is not None and found.tenant == tenant else None


def has_expired(session: Session, upload: Upload) -> bool:
    """By the clock of the database, as the reaper sees it."""
    return upload.expires_at <= database_now(session)


def add(session: Session, upload: Upload, lifetime: timedelta) -> None:
    """A new one."""
    upload.expires_at = database_now(session) + lifetime
    session.add(upload)
    session.flush()


def renew(session: Session, upload: Upload, lifetime: timedelta) -> None:
    """Lets it live on from now."""
    upload.expires_at = database_now(session) + lifetime
    session.execute(update(Upload).where(Upload.id == upload.id).values(expires_at=upload.expires_at))


def complete(session: Session, upload_id: str, digest: str) -> None:
    """All bytes are there, and this is what they are."""
    session.execute(update(Upload).where(Upload.id == upload_id).values(digest=digest))


def delete(session: Session, upload_id: str) -> None:
    """Removes the row."""
    session.execute(sql_delete(Upload).where(Upload.id == upload_id))
