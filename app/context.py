"""What every endpoint may reach: settings, database, blobs, the event bell and its like. Made once a process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.examining.examiners import Examiners
from app.fusions.bell import Bell
from app.fusions.waiting import Waiting
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
    waiting: Waiting
    examiners: Examiners
    quotas: Quotas


async def _context(request: Request) -> Context:  # async: as a plain function each call would wait for a thread
    found = request.app.state.context
    assert isinstance(found, Context)
    return found


Ctx = Annotated[Context, Depends(_context)]
