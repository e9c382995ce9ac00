"""PUT of one file, for checkpoints and datasets alike; and the question whether that is needed."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import WithJsonSchema
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from app.auth import Uploader
from app.context import Context, Ctx
from app.errors import declared
from app.quotas.service import Room
from app.store.blobs import AnnouncedBlob, StoredBlob
from app.store.ownership import Owner
from app.uploads import held, service
from app.uploads.digests import repr_digest
from app.uploads.names import MAX_PATH, NAME_PATTERN, PATH_PATTERN
from app.uploads.pace import paced
from app.uploads.schemas import UploadedFileOut

router = APIRouter(tags=["uploads"])
_SIZE = {"description": "how many they are", "schema": {"type": "integer", "minimum": 0}}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_RAW_BODY = {"requestBody": {"required": False, "description": "the file; none: an empty one", "content": _BYTES}}
_ANSWERS = declared(400, 408, 413, 415, 503, 507)
# The contract only: what is wrong with them is told by ``names``, with its remedy.
_Name = Annotated[str, WithJsonSchema({"type": "string", "pattern": NAME_PATTERN})]
_Path = Annotated[str, WithJsonSchema({"type": "string", "pattern": PATH_PATTERN, "maxLength": MAX_PATH})]


@router.put("/checkpoints/{name}/files/{path:path}", status_code=201, responses=_ANSWERS, openapi_extra=_RAW_BODY)
async def put_checkpoint_file(
    name: _Name, path: _Path, request: Request, response: Response, caller: Uploader, ctx: Ctx
) -> UploadedFileOut:
    """Store one file of a checkpoint to be; the body is the file itself (curl -T)."""
    return await _put("checkpoint", name, path, request, response, caller.owner, ctx)


@router.put("/datasets/{name}/files/{path:path}", status_code=201, responses=_ANSWERS, openapi_extra=_RAW_BODY)
async def put_dataset_file(
    name: _Name, path: _Path, request: Request, response: Response, caller: Uploader, ctx: Ctx
) -> UploadedFileOut:
    """Store one file of a dataset to be; the body is the file itself (curl -T)."""
    return await _put("dataset", name, path, request, response, caller.owner, ctx)


@router.head(
    "/blobs/sha256:{digest}",
    responses={**declared(404), 200: {"description": "You have these bytes", "headers": {"Content-Length": _SIZE}}},
    response_class=Response,
)
def look_for_blob(digest: Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")], caller: Uploader, ctx: Ctx) -> Response:
    """Whether you have these bytes already, in any file, checkpoint, dataset or artifact; then skip their upload."""
    with ctx.database.reading() as session:
        size = held.size(session, caller.tenant, digest)
    if not ctx.blobs.storage.has(StoredBlob(digest, size)):  # bytes that come again are stored again
        raise held.not_held(digest)
    return Response(headers={"Content-Length": str(size), "Cache-Control": "no-store"})


async def _put(
    kind: service.Kind, name: str, path: str, request: Request, response: Response, owner: Owner, ctx: Context
) -> UploadedFileOut:
    limit = ctx.settings.max_upload_bytes
    service.check_request(name, path, request.headers, limit)
    room = await run_in_threadpool(_room, ctx, owner, kind, name, path, request.headers)
    body = room.admit(paced(request.stream(), ctx.settings))
    stored = await service.receive(ctx.blobs, body, request.headers, limit)
    await run_in_threadpool(_note, ctx, owner, kind, name, path, stored)
    response.headers["Repr-Digest"] = repr_digest(stored.digest)
    return UploadedFileOut(path=path, size=stored.size, sha256=stored.digest)


def _room(ctx: Context, owner: Owner, kind: service.Kind, name: str, path: str, headers: Headers) -> Room:
    """How much may come. Refuses at once what is announced to be more, so that nobody sends in vain."""
    announced = service.announced_length(headers) or 0
    ctx.quotas.check_disk(announced)
    with ctx.database.reading() as session:
        room = ctx.quotas.room(session, owner)
        if room.limit is not None:
            room = replace(room, used=room.used - service.replaced_bytes(session, owner, kind, name, path))
    room.check(announced)
    return room


def _note(ctx: Context, owner: Owner, kind: service.Kind, name: str, path: str, stored: AnnouncedBlob) -> None:
    with ctx.database.transaction() as session:
        service.note(session, owner, kind, name, path, stored)
        ctx.quotas.check_bytes(session, owner)
