"""Callers and their scopes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from app.store.ownership import LOCAL, Owner


class Scope(StrEnum):
    """What a caller may do."""

    READ = "read"  # look at everything of the tenant, and download it
    UPLOAD = "upload"  # bring and remove checkpoints and datasets
    FUSE = "fuse"  # submit, cancel, retry and remove fusions
    WEBHOOKS = "webhooks"  # register addresses that are told of events


@dataclass(frozen=True)
class Caller:
    """Who calls."""

    owner: Owner
    scopes: frozenset[Scope]
    requests_per_second: float | None = None  # none: as fast as they like

    @property
    def tenant(self) -> str:
        """The tenant whose objects there are, as far as this caller can see."""
        return self.owner.tenant


LOCAL_CALLER = Caller(LOCAL, frozenset(Scope))
