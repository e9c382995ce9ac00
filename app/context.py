"""What every endpoint may reach: settings, database, blobs, event bell, who reads headers, quotas. Made once a process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.examining.examiners import Examiners
from app.fusions.bell import Bell
from app.quotas import Quotas
from app.settings import Settings
from app.store.blobs import BlobStore
from app.store.database import Database
from app.store.staging import Staging


@dataclass(frozen=True)
class Context:
    """The parts of one API process."""

    settings: Settings
    database: Database
    blobs: BlobStore
    staging: Staging
    bell: Bell
    examiners: Examiners
    quotas: Quotas


async def _context(request: Request) -> Context:  # async: as a plain function each call would wait for a thread
    found = request.app.state.context
    assert isinstance(found, Context)
    return found


Ctx = Annotated[Context, Depends(_context)]
