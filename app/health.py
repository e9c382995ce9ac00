"""Is the process alive, and has it all it needs?"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

import structlog
from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from app.broker import ping
from app.context import Context, Ctx
from app.errors import Unavailable, declared
from app.store.blobs import StorageError
from app.store.models import Base
from app.store.outages import outage_in
from cogram_core.errors import Problem

router = APIRouter(tags=["health"])
_log = structlog.get_logger(__name__)


class Live(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Everything that a request may need is there."""

    status: Literal["ok"] = "ok"
    checks: dict[str, Literal["ok"]]


@router.get("/healthz/live")
async def live() -> Live:
    """The process answers."""
    return Live()


@router.get("/healthz/ready", responses=declared(503))
def ready(ctx: Ctx) -> Ready:
    """Database, broker, blobs and disk are there; 503 lists what isn't."""
    problems = [problem for name in _CHECKS if (problem := _problem(name, ctx)) is not None]
    if problems:
        raise Unavailable("; ".join(problem.message for problem in problems), errors=problems)
    return Ready(checks=dict.fromkeys(_CHECKS, "ok"))


def _problem(name: str, ctx: Context) -> Problem | None:
    try:
        _CHECKS[name](ctx)
    except Exception as error:  # whatever it is that a broken part raises, it means: not ready
        _log.warning("health.not_ready", check=name, error=repr(error))
        return Problem(name, f"health.{name}", f"{name}: {_plainly(error)}")
    return None


def _plainly(error: Exception) -> str:
    """The kind of failure only; its text may hold addresses and passwords, and is in the log."""
    return str(error) if isinstance(error, _NotReady | StorageError) else f"not reachable ({type(error).__name__})"


class _NotReady(Exception):
    """A part is there, but can't do its work."""


def _check_database(ctx: Context) -> None:
    """Every table of this version is there with its columns: an answer alone may come from a database of an older one."""
    try:
        with ctx.database.reading() as session:
            for table in Base.metadata.sorted_tables:
                session.execute(select(table).limit(0))
    except DBAPIError as error:
        if outage_in(error) is not None:
            raise
        raise _NotReady("its tables can't be read as this version has them: run cogram migrate") from error


def _check_broker(ctx: Context) -> None:
    ping(ctx.settings.resolved_broker_url)


def _check_blobs(ctx: Context) -> None:
    if not os.access(ctx.blobs.incoming.folder, os.W_OK | os.X_OK):
        raise _NotReady("the blob folder can't be written")
    ctx.blobs.storage.check()


def _check_disk(ctx: Context) -> None:
    free, least = ctx.blobs.incoming.free_bytes(), ctx.settings.min_free_bytes
    if free < least:
        raise _NotReady(f"{free} bytes are free and {least} are wanted (COGRAM_MIN_FREE_BYTES)")


_CHECKS: dict[str, Callable[[Context], None]] = {
    "database": _check_database,
    "broker": _check_broker,
    "blobs": _check_blobs,
    "disk": _check_disk,
}
