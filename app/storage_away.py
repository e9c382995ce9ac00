"""A storage of blobs that does not answer, as callers see it: 503, and worth another try."""

from __future__ import annotations

import structlog
from fastapi import Request
from fastapi.responses import JSONResponse

from app.errors import Unavailable, problem_response
from app.store.blobs import StorageError

_log = structlog.get_logger(__name__)


class StorageAway(Unavailable):
    """The blobs are out of reach."""

    code, title = "storage.away", "Storage out of reach"


async def tell_storage_error(request: Request, error: Exception) -> JSONResponse:
    """What was asked for has not happened, and may be asked for again."""
    assert isinstance(error, StorageError)
    _log.warning("storage.away", error=str(error), cause=repr(error.__cause__))
    return problem_response(
        request.url.path,
        status=StorageAway.status,
        code=StorageAway.code,
        title=StorageAway.title,
        detail="The storage of files does not answer. Nothing is lost; ask again in a moment.",
        headers={"Retry-After": "10"},
    )
