"""What goes wrong with the storage of blobs, as callers see it: it does not answer, or has lost what it was given."""

from __future__ import annotations

import structlog
from fastapi import Request
from fastapi.responses import JSONResponse

from app.errors import Gone, Unavailable, answer_to, problem_response
from app.store.blobs import BlobGone, StorageError

_log = structlog.get_logger(__name__)


class StorageAway(Unavailable):
    """The blobs are out of reach."""

    code, title = "storage.away", "Storage out of reach"


class BytesGone(Gone):
    """The file is known, and its bytes are no longer in the storage."""

    code, title = "blob.gone", "Stored bytes gone"


def log_gone(error: BlobGone) -> None:
    """For whoever runs the service, whatever its caller is told: bytes that are referred to must never be lost."""
    _log.error("blob.gone", digest=error.blob.digest, size=error.blob.size)


async def tell_blob_gone(request: Request, error: Exception) -> JSONResponse:
    """Asking again is in vain; but should the bytes be restored, nobody may have kept this answer."""
    assert isinstance(error, BlobGone)
    log_gone(error)
    told = BytesGone(
        f"The service knows this file, but its stored bytes (sha256 {error.blob.digest}) are gone: removed by other hands, "
        "or lost by the storage. Have whoever runs the service restore them from a backup, or make the file again: upload "
        "it, or post the fusion's recipe.",
        headers={"Cache-Control": "no-store"},
    )
    return answer_to(told, request.url.path)


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
