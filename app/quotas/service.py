"""Rules about quotas: counted after the transaction has written, under the lock of the account's row.

The row is locked last and for the counting only. Whoever gets the lock next counts what was committed before: so however
many requests come at once, no more of them succeed than the quota has room for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Self

from sqlalchemy.orm import Session

from app.quotas import repository
from app.quotas.errors import BytesUsedUp, DiskLow, FusionsUsedUp, TooManyAtOnce
from app.settings import Settings
from app.store.models import Account
from app.store.ownership import LOCAL, Owner

_RETRY_AFTER = {"Retry-After": "10"}  # seconds: a fusion has to end first
_DISK_RETRY_AFTER = {"Retry-After": "60"}  # somebody has to see to it, or the collector, which comes that often
_MORE = "ask whoever runs the service for more"


@dataclass(frozen=True)
class Limits:
    """How much an account may use; None is without limit."""

    bytes: int | None = None
    fusions: int | None = None
    concurrent: int | None = None


@dataclass(frozen=True)
class Room:
    """What an account stores, and may store; None is without limit."""

    used: int
    limit: int | None

    def check(self, coming: int) -> None:
        """Raises BytesUsedUp when that many more are too many."""
        if self.limit is not None and self.used + coming > self.limit:
            raise BytesUsedUp(
                f"The account would store {self.used + coming} bytes, and may store {self.limit}; nothing was stored. "
                f"Delete checkpoints, datasets or fusions that are no longer needed, or {_MORE} (quota_bytes)."
            )

    async def admit(self, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body, as far as there is room for it; its length need not be announced."""
        received = 0
        async for piece in body:
            received += len(piece)
            self.check(received)
            yield piece


@dataclass(frozen=True)
class Quotas:
    """The limits of every account, where its own row sets none; and how much of the disk stays free."""

    defaults: Limits
    min_free_bytes: int
    free_bytes: Callable[[], int]

    @classmethod
    def of(cls, settings: Settings, free_bytes: Callable[[], int]) -> Self:
        """As the settings have it."""
        limits = Limits(settings.quota_bytes, settings.quota_fusions, settings.quota_concurrent)
        return cls(limits, settings.min_free_bytes, free_bytes)

    def check_disk(self, coming: int = 0, outcome: str = "nothing was stored") -> None:
        """Raises DiskLow when, with ``coming`` bytes more, the disk would have less left than is kept free."""
        free = self.free_bytes()
        if free - coming < self.min_free_bytes:
            raise DiskLow(
                f"The disk has {free} bytes left, {coming} would come, and {self.min_free_bytes} are kept free "
                f"(COGRAM_MIN_FREE_BYTES); {outcome}. Try again later, or have room made on it.",
                headers=_DISK_RETRY_AFTER,
            )

    def room(self, session: Session, owner: Owner) -> Room:
        """How much the account may store, as it is now: others may store, too, until a transaction checks it."""
        if owner == LOCAL:
            return Room(0, None)
        return self._room(session, owner, self._limits(repository.account(session, owner.account)))

    def check_bytes(self, session: Session, owner: Owner) -> None:
        """Called last in a transaction that stores something.

        Raises:
            BytesUsedUp: when with it the account stores more than it may.
        """
        limits = self._locked_limits(session, owner)
        self._room(session, owner, limits).check(0)

    def check_fusions(self, session: Session, owner: Owner) -> None:
        """Called last in a transaction that queues a fusion.

        Raises:
            TooManyAtOnce: when too many of the account wait or run.
            FusionsUsedUp: when it keeps too many.
            BytesUsedUp: when it stores too much for the fusion's result to be added.
        """
        limits = self._locked_limits(session, owner)
        if limits.concurrent is not None:
            unfinished = repository.unfinished_fusions(session, owner.account)
            if unfinished > limits.concurrent:
                raise TooManyAtOnce(
                    f"{unfinished - 1} fusions of the account have not ended, and {limits.concurrent} may be at once. Wait "
                    f"for one to end, or cancel one, or {_MORE} (quota_concurrent).",
                    headers=_RETRY_AFTER,
                )
        if limits.fusions is not None:
            kept = repository.kept_fusions(session, owner.account)
            if kept > limits.fusions:
                raise FusionsUsedUp(
                    f"The account keeps {kept - 1} fusions, and may keep {limits.fusions}. Delete some, or "
                    f"{_MORE} (quota_jobs)."
                )
        self._room(session, owner, limits).check(1)

    def _room(self, session: Session, owner: Owner, limits: Limits) -> Room:
        return Room(0 if limits.bytes is None else repository.stored_bytes(session, owner.account), limits.bytes)

    def _locked_limits(self, session: Session, owner: Owner) -> Limits:
        if owner == LOCAL:
            return Limits()
        session.flush()  # the lock comes last
        return self._limits(repository.locked_account(session, owner.account))

    def _limits(self, account: Account | None) -> Limits:
        if account is None:  # its row was removed by hand a moment ago
            return self.defaults
        return Limits(
            self.defaults.bytes if account.quota_bytes is None else account.quota_bytes,
            self.defaults.fusions if account.quota_jobs is None else account.quota_jobs,
            self.defaults.concurrent if account.quota_concurrent is None else account.quota_concurrent,
        )
