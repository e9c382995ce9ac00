"""The files that a fusion produced."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.auth import Reader
from app.context import Ctx
from app.errors import declared
from app.fusions import service
from app.fusions.downloads import blob_response
from app.fusions.schemas import ArtifactList, ArtifactOut
from app.store.blobs import StoredBlob

router = APIRouter(prefix="/fusions", tags=["artifacts"])
_BYTES = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole file", **_BYTES},
    206: {"description": "A part of the file", **_BYTES},
    304: {"description": "Not changed"},
    **declared(404, 409, 416),
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


@router.get("/{fusion_id}/artifacts/{path:path}", responses=_ANSWERS, response_class=Response)
def download_artifact(fusion_id: str, path: str, request: Request, caller: Reader, ctx: Ctx) -> Response:
    """One file, or a part of it (Range, If-Range, If-None-Match)."""
    with ctx.database.reading() as session:
        file = service.artifact(session, caller.tenant, fusion_id, path)
    return blob_response(request, ctx.blobs.storage, file.path, StoredBlob(file.digest, file.size))


@router.head("/{fusion_id}/artifacts/{path:path}", responses=_ANSWERS, response_class=Response)
def look_at_artifact(fusion_id: str, path: str, request: Request, caller: Reader, ctx: Ctx) -> Response:
    """What GET would answer, without the bytes."""
    return download_artifact(fusion_id, path, request, caller, ctx)
