"""What the parent of a worker does before it forks, so that a fresh child starts in milliseconds, not seconds."""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

import structlog
from billiard.util import get_pdeathsig
from sqlalchemy.exc import SQLAlchemyError

from app import tracing
from app.store import jobs
from app.store.database import Database
from app.store.events import EventType
from app.store.models import Checkpoint, Dataset
from app.store.ownership import Owner
from cogram_core.recipe import Recipe
from worker.fusing import database

log = structlog.get_logger("worker.preload")

# torch loads this when a module first leaves the meta device: half a second in every child.
_ALSO_LOADED = ("torch.fx.experimental.symbolic_shapes",)
_NOBODY = Owner("rehearsal", "rehearsal")
_NOTHING = "none"
_RECIPE = {"sources": [{"name": name, "checkpoint": name} for name in "ab"], "stages": [{"method": "linear"}]}


def preload() -> None:
    """No tensor is made and no device touched before the fork, and no connection stays open."""
    for name in (*_ALSO_LOADED, *tracing.modules()):
        import_module(name)
    with suppress(OSError):  # other systems than Linux have none
        get_pdeathsig()  # each child sets its own first of all; where there is cffi, that loads a parser of C
    try:
        rehearse(database())
    except SQLAlchemyError as error:  # then each child finds its words by itself
        log.warning("not rehearsed", error=str(error))
    finally:
        database().close()
    # Celery collects garbage before every fork: half a million objects of torch, in a fifth of a second. What is there
    # now stays for good, so no collection needs to look at it, and none dirties the pages that the children share.
    gc.collect()
    gc.freeze()


def rehearse(database: Database) -> None:
    """A job's whole life, in a transaction that is taken back.

    Mapping the tables and compiling the statements takes a child longer than a small fusion; it inherits both.
    """
    recipe = Recipe.from_document(_RECIPE).to_document()
    with database.transaction() as session:
        for table in (Checkpoint, Dataset):
            session.get(table, _NOTHING)
        held = jobs.claim(session, jobs.submit(session, _NOBODY, recipe, [_NOTHING]).id, _NOTHING, 1.0, 1)
        if held is not None:
            jobs.settle(session, held, recipe)
            jobs.heartbeat(session, held, 1.0)
            jobs.standing(session, held)
            jobs.report(session, held, {}, [(EventType.PROGRESS, {})])
            jobs.finish_succeeded(session, held, {}, [])
        session.rollback()
