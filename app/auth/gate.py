"""From the credentials in a request to the caller; remembered for a few seconds, so that most calls ask no database."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv6Address, ip_address, ip_network
from weakref import WeakValueDictionary

from starlette.concurrency import run_in_threadpool

from app.auth import service
from app.auth.buckets import Buckets, Level
from app.auth.callers import LOCAL_CALLER, Caller, Scope
from app.auth.errors import CredentialsMissing, CredentialsRefused, RateExceeded, TooManyFailures
from app.auth.keys import PREFIX, account_of
from app.auth.oidc import Issuer, Subject
from app.errors import ApiError
from app.settings import Settings
from app.store.database import Database
from app.store.models import Account, utc_now
from app.store.ownership import Owner

_MOST_REMEMBERED = 10_000
_BURST_SECONDS = 2.0  # of requests that may come at once
_LONGEST_TOKEN = 16_384


@dataclass(frozen=True)
class _Known:
    """Credentials that were good a moment ago."""

    caller: Caller
    expires_at: datetime | None
    forget_at: float


class Gate:
    """Knows the callers of one API process."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._issuer = Issuer(settings) if settings.oidc_issuer else None
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._looking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._requests = Buckets()
        self._failures = Buckets()

    @property
    def is_open(self) -> bool:
        """Whether callers without credentials are the local one."""
        return not self._settings.credentials_required

    async def caller(self, authorization: str | None, peer: str) -> Caller:
        """Who calls.

        Raises:
            CredentialsMissing: when nothing says so.
            CredentialsRefused: when what says so is not good.
            TooManyFailures: when too much of that came from the address.
        """
        return await self._caller(_bearer(authorization), peer)

    async def _caller(self, token: str | None, guesser: str | None) -> Caller:
        """Who brings the token; ``guesser`` is the address from which it might be a guess."""
        # Without keys, what isn't one of ours belongs to whatever stands in front of the service.
        if self.is_open and not (token or "").startswith(PREFIX):
            return LOCAL_CALLER
        if token is None:
            raise CredentialsMissing.told()
        known = self._remembered(token) or await self._found(token, guesser)
        if known.expires_at is not None and utc_now() >= known.expires_at:
            raise CredentialsRefused.told()
        return known.caller

    async def is_still_good(self, authorization: str | None) -> bool:
        """Whether who was let in a while ago would be again; for calls that last.

        That is no guess, so others who guess from the same address keep nobody from being asked again.
        """
        try:
            await self._caller(_bearer(authorization), None)
        except CredentialsRefused:
            return False
        except ApiError:  # it can't be told just now, and they were good before
            return True
        return True

    def spend(self, caller: Caller) -> Level | None:
        """Counts a request; None for a caller without a limit.

        Raises:
            RateExceeded: when it came too soon.
        """
        rate = caller.requests_per_second
        if rate is None:
            return None
        level = self._requests.take(caller.owner.account, rate, max(1.0, rate * _BURST_SECONDS))
        if not level.has_one:
            raise RateExceeded.at(level, rate)
        return level

    def _remembered(self, token: str) -> _Known | None:
        known = self._known.get(_fingerprint(token))
        return known if known is not None and time.monotonic() < known.forget_at else None

    async def _found(self, token: str, guesser: str | None) -> _Known:
        """Looks the credentials up, once for all that bring the same at the same time."""
        fingerprint = _fingerprint(token)
        async with self._looking.setdefault(fingerprint, asyncio.Lock()):
            known = self._remembered(token)
            if known is not None:
                return known
            was_good = self._known.pop(fingerprint, None) is not None
            if guesser is None:
                known = await self._look_up(token)
            else:
                known = await self._look_up_for(guesser, token, was_good)
            self._known[fingerprint] = known
            while len(self._known) > _MOST_REMEMBERED:
                self._known.popitem(last=False)
            return known

    async def _look_up_for(self, guesser: str, token: str, was_good: bool) -> _Known:
        """Looks credentials up that may be a guess; what was good a while ago is none."""
        most = self._settings.auth_failures_per_minute
        bucket = (_network(guesser), most / 60, most)
        level = self._failures.look(*bucket)
        if not level.has_one and not was_good:
            raise TooManyFailures.until(level.wait_seconds)
        try:
            return await self._look_up(token)
        except CredentialsRefused:
            self._failures.charge(*bucket)
            raise

    async def _look_up(self, token: str) -> _Known:
        if not token.startswith(PREFIX) and self._issuer is not None:
            subject = await self._issuer.subject(token)
            account = await run_in_threadpool(self._account_of_subject, subject)
            return self._good(account, subject.scopes, subject.expires_at)
        account_id = account_of(token)
        if account_id is None:
            raise CredentialsRefused.told()
        found = await run_in_threadpool(self._account_of_key, account_id, token)
        if found is None:
            raise CredentialsRefused.told()
        return self._good(found, frozenset(map(Scope, found.scopes)), found.expires_at)

    def _good(self, account: Account, scopes: frozenset[Scope], expires_at: datetime | None) -> _Known:
        if not service.is_good(account, utc_now()):
            raise CredentialsRefused.told()
        rate = account.requests_per_second
        caller = Caller(
            Owner(account.id, account.tenant),
            scopes,
            self._settings.requests_per_second if rate is None else rate,
        )
        return _Known(caller, expires_at, time.monotonic() + self._settings.key_cache_seconds)

    def _account_of_key(self, account_id: str, token: str) -> Account | None:
        with self._database.reading() as session:
            return service.of_key(session, account_id, token)

    def _account_of_subject(self, subject: Subject) -> Account:
        with self._database.reading() as session:
            found = service.subject(session, subject.account)
        if found is not None and found.tenant == subject.tenant:
            return found
        with self._database.transaction() as session:
            return service.note_subject(session, subject.account, subject.tenant, subject.name)


def _bearer(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and 0 < len(token) <= _LONGEST_TOKEN else None


def _fingerprint(token: str) -> str:
    """The cache's key: no secret is kept, and how long a look-up takes tells nothing of one."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _network(peer: str) -> str:
    """The address whose failures are counted together; one IPv6 customer has a whole /64."""
    try:
        address = ip_address(peer)
    except ValueError:
        return peer
    return str(ip_network((address, 64), strict=False)) if isinstance(address, IPv6Address) else peer
