"""tus over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from email.utils import format_datetime

from fastapi import APIRouter, Request, Response

from app.auth import Uploader
from app.context import Context, Ctx
from app.errors import declared
from app.uploads.digests import repr_digest
from app.uploads.pace import paced
from app.uploads.tus import contract, protocol, service
from app.uploads.tus.envelope import PREFIX
from app.uploads.tus.service import Standing

router = APIRouter(prefix="/uploads", tags=["uploads"])
_FAILED = declared(404, 410, 412, 423)
_FAILED_WITH_BODY = declared(400, 404, 408, 409, 410, 412, 413, 415, 423, 460, 503, 507)


@router.options("", status_code=204, responses=contract.described(204, contract.OPTIONS_ANSWER) | declared())
async def describe_uploads(ctx: Ctx) -> Response:
    """What of tus 1.0 is spoken here, and the largest file."""
    headers = {
        "Tus-Version": protocol.VERSION,
        "Tus-Extension": protocol.EXTENSIONS,
        "Tus-Checksum-Algorithm": ",".join(protocol.ALGORITHMS),
        "Tus-Max-Size": str(ctx.settings.max_upload_bytes),
        "Cache-Control": "no-store",
    }
    return Response(status_code=204, headers=headers)


@router.post(
    "",
    status_code=201,
    responses=contract.described(201, contract.POST_ANSWER) | _FAILED_WITH_BODY,
    openapi_extra=contract.POST,
)
async def create_upload(request: Request, caller: Uploader, ctx: Ctx) -> Response:
    """Begin a resumable upload (tus 1.0); the body may bring its first bytes."""
    protocol.check_version(request.headers)
    wanted = protocol.read_creation(request.headers)
    standing = await service.create(ctx, caller.owner, wanted, _body(request, ctx))
    headers = {"Location": f"{PREFIX}/{standing.id}", **_progress(standing)}
    return Response(status_code=201, headers=headers)


@router.head(
    "/{upload_id}",
    responses=contract.described(200, contract.HEAD_ANSWER) | _FAILED | declared(422, 503, 507),
    openapi_extra=contract.HEAD,
    response_class=Response,
)
async def look_at_upload(upload_id: str, request: Request, caller: Uploader, ctx: Ctx) -> Response:
    """How many bytes of an upload are kept; all of them, once its file can be used."""
    protocol.check_version(request.headers)
    standing = await service.stand(ctx, caller.tenant, upload_id)
    headers = {"Upload-Length": str(standing.length), "Cache-Control": "no-store", **_progress(standing)}
    if standing.metadata_header:
        headers["Upload-Metadata"] = standing.metadata_header
    return Response(headers=headers)


@router.patch(
    "/{upload_id}",
    status_code=204,
    responses=contract.described(204, contract.PATCH_ANSWER) | _FAILED_WITH_BODY,
    openapi_extra=contract.PATCH,
)
async def append_to_upload(upload_id: str, request: Request, caller: Uploader, ctx: Ctx) -> Response:
    """Append bytes from where the upload stands; with the last one it becomes an uploaded file."""
    protocol.check_version(request.headers)
    wanted = protocol.read_append(request.headers)
    announced = request.headers.get("Content-Length", "")
    length = int(announced) if announced.isdecimal() else None
    standing = await service.append(ctx, caller.tenant, upload_id, wanted, length, _body(request, ctx))
    return Response(status_code=204, headers=_progress(standing))


@router.delete("/{upload_id}", status_code=204, responses=_FAILED, openapi_extra=contract.DELETE)
async def end_upload(upload_id: str, request: Request, caller: Uploader, ctx: Ctx) -> Response:
    """Give an upload up and remove its bytes; the file that a complete one has become stays."""
    protocol.check_version(request.headers)
    await service.terminate(ctx, caller.tenant, upload_id)
    return Response(status_code=204)


def _body(request: Request, ctx: Context) -> AsyncIterator[bytes]:
    return paced(request.stream(), ctx.settings)


def _progress(standing: Standing) -> dict[str, str]:
    headers = {
        "Upload-Offset": str(standing.offset),
        "Upload-Expires": format_datetime(standing.expires_at, usegmt=True),
    }
    if standing.digest is not None:
        headers["Repr-Digest"] = repr_digest(standing.digest)
    return headers
