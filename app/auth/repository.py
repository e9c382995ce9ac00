"""Every select and write on accounts."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.store.models import Account, utc_now
from app.store.upserts import insert


def get(session: Session, account: str) -> Account | None:
    """By id."""
    return session.get(Account, account)


def get_locked(session: Session, account: str) -> Account | None:
    """By id, held until the transaction ends."""
    return session.get(Account, account, with_for_update=True)


def everyone(session: Session, tenant: str | None) -> Sequence[Account]:
    """All accounts, or those of one tenant, oldest first."""
    chosen = select(Account).order_by(Account.created_at, Account.id)
    if tenant is not None:
        chosen = chosen.where(Account.tenant == tenant)
    return session.scalars(chosen).all()


def put_subject(session: Session, account: str, tenant: str, name: str) -> None:
    """Makes the row of an identity provider's subject, or moves it to another tenant; two requests may do so at once."""
    content = {"tenant": tenant, "name": name}
    statement = insert(session, Account).values(id=account, scopes=[], created_at=utc_now(), **content)
    session.execute(statement.on_conflict_do_update(index_elements=[Account.id], set_=content))
