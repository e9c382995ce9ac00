"""Every select and write on calls that were answered."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.store.models import IdempotentCall, utc_now
from app.store.upserts import insert


def get(session: Session, owner: str, key: str) -> IdempotentCall | None:
    """The call that was answered under a key."""
    chosen = select(IdempotentCall).where(IdempotentCall.owner == owner, IdempotentCall.key == key)
    return session.scalars(chosen, execution_options={"populate_existing": True}).one_or_none()


def claim(session: Session, owner: str, key: str, call: str, body_sha256: str) -> bool:
    """Takes the key for this transaction; False if it was taken. Waits for whoever is just taking it."""
    unanswered = {"status": 0, "headers": {}, "body": "", "created_at": utc_now()}
    content = {"owner": owner, "key": key, "call": call, "body_sha256": body_sha256, **unanswered}
    statement = insert(session, IdempotentCall).values(content)
    taken = session.execute(statement.on_conflict_do_nothing().returning(IdempotentCall.key))
    return taken.first() is not None


def answer(session: Session, owner: str, key: str, status: int, headers: Mapping[str, str], body: str) -> None:
    """Writes down what was answered under a key that this transaction has taken."""
    call = update(IdempotentCall).where(IdempotentCall.owner == owner, IdempotentCall.key == key)
    session.execute(call.values(status=status, headers=dict(headers), body=body))
