"""PUT of one file, for checkpoints and datasets alike."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.auth import Uploader
from app.context import Context, Ctx
from app.errors import declared
from app.store.blobs import AnnouncedBlob
from app.store.ownership import Owner
from app.uploads import service
from app.uploads.digests import repr_digest
from app.uploads.pace import paced
from app.uploads.schemas import UploadedFileOut

router = APIRouter(tags=["uploads"])
_RAW_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}
_ANSWERS = declared(400, 408, 413, 415, 503, 507)


@router.put("/checkpoints/{name}/files/{path:path}", status_code=201, responses=_ANSWERS, openapi_extra=_RAW_BODY)
async def put_checkpoint_file(
    name: str, path: str, request: Request, response: Response, caller: Uploader, ctx: Ctx
) -> UploadedFileOut:
    """Store one file of a checkpoint to be; the body is the file itself (curl -T)."""
    return await _put("checkpoint", name, path, request, response, caller.owner, ctx)


@router.put("/datasets/{name}/files/{path:path}", status_code=201, responses=_ANSWERS, openapi_extra=_RAW_BODY)
async def put_dataset_file(
    name: str, path: str, request: Request, response: Response, caller: Uploader, ctx: Ctx
) -> UploadedFileOut:
    """Store one file of a dataset to be; the body is the file itself (curl -T)."""
    return await _put("dataset", name, path, request, response, caller.owner, ctx)


async def _put(
    kind: service.Kind, name: str, path: str, request: Request, response: Response, owner: Owner, ctx: Context
) -> UploadedFileOut:
    limit = ctx.settings.max_upload_bytes
    service.check_request(name, path, request.headers, limit)
    stored = await service.receive(ctx.blobs, paced(request.stream(), ctx.settings), request.headers, limit)
    await run_in_threadpool(_note, ctx, owner, kind, name, path, stored)
    response.headers["Repr-Digest"] = repr_digest(stored.digest)
    return UploadedFileOut(path=path, size=stored.size, sha256=stored.digest)


def _note(ctx: Context, owner: Owner, kind: service.Kind, name: str, path: str, stored: AnnouncedBlob) -> None:
    with ctx.database.transaction() as session:
        service.note(session, owner, kind, name, path, stored)
