"""Who calls, and what they may do. Every endpoint names the scope that it needs; every query takes the caller's tenant."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from fastapi import Depends

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

    @property
    def tenant(self) -> str:
        """The tenant whose objects there are, as far as this caller can see."""
        return self.owner.tenant


def _local() -> Caller:
    return Caller(LOCAL, frozenset(Scope))


Reader = Annotated[Caller, Depends(_local)]
Uploader = Annotated[Caller, Depends(_local)]
Fuser = Annotated[Caller, Depends(_local)]
Subscriber = Annotated[Caller, Depends(_local)]
