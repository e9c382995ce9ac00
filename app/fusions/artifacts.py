"""The files that a fusion produced."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from app.auth import Reader
from app.context import Context, Ctx
from app.errors import declared
from app.fusions import contract, service
from app.fusions.downloads import MEDIA_TYPES, blob_response
from app.fusions.schemas import ArtifactList, ArtifactOut
from app.store.blobs import BlobGone, StoredBlob

router = APIRouter(prefix="/fusions", tags=["artifacts"])
_CONDITIONS = ("If-Match", "If-Range", "If-None-Match")
_OWN_TAG = re.compile(r'"[0-9a-f]{64}"')  # a sha256, which no storage has for its own tags
_ELSEWHERE: dict[int | str, dict[str, Any]] = {
    307: {"description": "The same file, from the storage itself (COGRAM_PRESIGNED_SECONDS)"}
}
_FILE: dict[str, Any] = {
    "responses": contract.downloads(MEDIA_TYPES) | _ELSEWHERE | declared(404, 409, 410, 412, 416),
    "openapi_extra": contract.DOWNLOAD,
    "response_class": Response,
}


@router.get("/{fusion_id}/artifacts", responses=declared(404, 409))
def list_artifacts(fusion_id: str, caller: Reader, ctx: Ctx) -> ArtifactList:
    """All files of a fusion that succeeded, with sizes and digests."""
    with ctx.database.reading() as session:
        files = service.succeeded(session, caller.tenant, fusion_id).artifacts
    here = f"/v1/fusions/{fusion_id}/artifacts/"
    items = [
        ArtifactOut(path=file.path, size=file.size, sha256=file.digest, link=here + quote(file.path)) for file in files
    ]
    return ArtifactList(items=items)


@router.get("/{fusion_id}/artifacts/{path:path}", **_FILE)
def download_artifact(fusion_id: str, path: str, request: Request, caller: Reader, ctx: Ctx) -> Response:
    """One file, or a part of it (Range, If-Range, If-Match, If-None-Match)."""
    with ctx.database.reading() as session:
        file = service.artifact(session, caller.tenant, fusion_id, path)
    blob = StoredBlob(file.digest, file.size)
    return _elsewhere(request, blob, ctx) or blob_response(request, ctx.blobs.storage, file.path, blob)


@router.head("/{fusion_id}/artifacts/{path:path}", **_FILE)
def look_at_artifact(fusion_id: str, path: str, request: Request, caller: Reader, ctx: Ctx) -> Response:
    """What GET would answer, without the bytes."""
    with ctx.database.reading() as session:
        file = service.artifact(session, caller.tenant, fusion_id, path)
    blob = StoredBlob(file.digest, file.size)
    if not ctx.blobs.storage.has(blob):
        raise BlobGone(blob)
    return blob_response(request, ctx.blobs.storage, file.path, blob)


def _elsewhere(request: Request, blob: StoredBlob, ctx: Context) -> Response | None:
    """A redirection to the storage itself, where the settings want one and the storage can be read by others.

    Not for conditions on our entity tags: who follows sends them on to the storage, whose tags are others. Conditions on
    the storage's tags, which earlier answers of its own told, are for the storage to judge.
    """
    conditions = " ".join(request.headers.get(name, "") for name in _CONDITIONS)
    if not ctx.settings.presigned_seconds or _OWN_TAG.search(conditions):
        return None
    address = ctx.blobs.storage.address(blob, timedelta(seconds=ctx.settings.presigned_seconds))
    return None if address is None else RedirectResponse(address, 307, {"Cache-Control": "no-store"})
