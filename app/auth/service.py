"""Rules about accounts: how keys are made and taken back, and when credentials are good."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from app.auth import repository
from app.auth.callers import Scope
from app.auth.keys import NewKey, new_key, secret_hash
from app.store.clock import database_now
from app.store.models import Account
from cogram_core.errors import InvalidInput, Problem

TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MAX_NAME = 128


class WrongKeyRequest(InvalidInput):
    """A key can't be made or taken back as it was asked for."""

    code = "keys.invalid"


@dataclass(frozen=True)
class Allowance:
    """How much an account may use; what is None is as the settings have it."""

    bytes: int | None = None
    fusions: int | None = None
    concurrent: int | None = None
    requests_per_second: float | None = None


def create(
    session: Session, tenant: str, name: str, scopes: Collection[str], allowance: Allowance, days: float | None
) -> NewKey:
    """A new key. Its text is nowhere but in the answer.

    Raises:
        WrongKeyRequest: listing all that is wrong.
    """
    problems = [
        Problem(place, WrongKeyRequest.code, message)
        for place, message in _faults(tenant, name, scopes, allowance, days)
    ]
    if problems:
        raise WrongKeyRequest(problems)
    key, now = new_key(), database_now(session)
    account = Account(
        id=key.account,
        tenant=tenant,
        name=name,
        secret_hash=secret_hash(key.text),
        scopes=sorted(set(scopes)),
        quota_bytes=allowance.bytes,
        quota_jobs=allowance.fusions,
        quota_concurrent=allowance.concurrent,
        requests_per_second=allowance.requests_per_second,
        created_at=now,
        expires_at=None if days is None else now + timedelta(days=days),
    )
    session.add(account)
    session.flush()
    return key


def revoke(session: Session, account: str) -> Account:
    """Ends an account for good; ending it again changes nothing.

    Raises:
        WrongKeyRequest: without such an account.
    """
    found = repository.get_locked(session, account)
    if found is None:
        message = f"there is no account {account!r}; cogram keys list shows them"
        raise WrongKeyRequest([Problem("id", WrongKeyRequest.code, message)])
    found.revoked_at = found.revoked_at or database_now(session)
    session.flush()
    return found


def everyone(session: Session, tenant: str | None) -> Sequence[Account]:
    """All accounts, or those of one tenant."""
    return repository.everyone(session, tenant)


def of_key(session: Session, account: str, text: str) -> Account | None:
    """The account whose key this is; None for any other text."""
    found = repository.get(session, account)
    kept = found.secret_hash if found is not None else None
    if not hmac.compare_digest(kept or "", secret_hash(text)):
        return None
    return found


def subject(session: Session, account: str) -> Account | None:
    """The account of an identity provider's subject; None before its first call."""
    return repository.get(session, account)


def note_subject(session: Session, account: str, tenant: str, name: str) -> Account:
    """Makes the account of a subject at its first call, so that there is a row under which its quotas are counted.

    The scopes are the token's, so none are kept.
    """
    plain = "".join(letter if letter.isprintable() else "?" for letter in name[:_MAX_NAME])
    repository.put_subject(session, account, tenant, plain)
    found = repository.get(session, account)
    assert found is not None
    return found


def is_good(account: Account, now: datetime) -> bool:
    """Whether it may call at all, now."""
    return account.revoked_at is None and (account.expires_at is None or now < account.expires_at)


def _faults(
    tenant: str, name: str, scopes: Collection[str], allowance: Allowance, days: float | None
) -> list[tuple[str, str]]:
    faults = []
    if not TENANT.fullmatch(tenant):
        faults.append(("tenant", "a tenant has 1 to 64 characters out of A-Z a-z 0-9 . _ -"))
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        faults.append(("name", f"a name has 1 to {_MAX_NAME} printable characters"))
    if not scopes or not set(scopes) <= set(Scope):
        faults.append(("scope", f"give one or more of {', '.join(Scope)}"))
    rate = allowance.requests_per_second
    if rate is not None and not 0.01 <= rate <= 100_000:
        faults.append(("rate", "must be between 0.01 and 100000 requests a second"))
    if days is not None and not 0 < days <= 36_500:
        faults.append(("expires-days", "must be above 0 and at most 36500"))
    return faults
