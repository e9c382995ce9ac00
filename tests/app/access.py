"""A service that knows its callers, and callers of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from app.auth import Scope
from app.auth import service as accounts
from app.auth.keys import NewKey
from tests.app.factories import Service


@dataclass(frozen=True)
class Guarded:
    """A running service that requires keys."""

    service: Service

    @property
    def address(self) -> str:
        """Where it listens."""
        return str(self.service.http.base_url)

    def key(self, tenant: str = "one", *scopes: Scope, days: float | None = None, **allowance: Any) -> NewKey:
        """A new key; of every scope, if none is given."""
        with self.service.context.database.transaction() as session:
            wanted = scopes or tuple(Scope)
            return accounts.create(session, tenant, f"of {tenant}", wanted, accounts.Allowance(**allowance), days)

    def revoke(self, key: NewKey) -> None:
        """Ends a key."""
        with self.service.context.database.transaction() as session:
            accounts.revoke(session, key.account)

    def client(self, key: NewKey) -> httpx.Client:
        """A client that sends the key."""
        headers = {"Authorization": f"Bearer {key.text}"}
        # Nothing here is encrypted, and to load all authorities takes longer than most tests.
        return httpx.Client(base_url=self.address, timeout=20, headers=headers, verify=False)

    @contextmanager
    def calling(self, key: NewKey) -> Iterator[Service]:
        """The service as the holder of the key sees it."""
        with self.client(key) as client:
            yield Service(client, self.service.context)
