"""Checkpoints over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.auth import Reader, Uploader
from app.checkpoints import service
from app.checkpoints.schemas import CheckpointIn, CheckpointOut, CheckpointPage, TensorOut, TensorPage
from app.context import Ctx
from app.errors import declared
from app.paging import Limit, PageToken, decode_id, decode_number, encode_token
from app.store.models import Checkpoint
from app.uploads.names import NAME_PATTERN
from app.uploads.schemas import UploadedFileOut

router = APIRouter(prefix="/checkpoints", tags=["checkpoints"])


@router.post("", status_code=201, responses=declared(400, 409, 413))
def create_checkpoint(wanted: CheckpointIn, response: Response, caller: Uploader, ctx: Ctx) -> CheckpointOut:
    """Make a checkpoint of uploaded files; their headers are checked, and every problem is listed."""
    with ctx.database.reading() as session:
        candidate = service.gather(session, caller.tenant, wanted)
    summary = service.examine(candidate, ctx.blobs)  # outside of transactions: a long header must not stop writers
    with ctx.database.transaction() as session:
        checkpoint = service.create(session, caller.owner, candidate, summary)
    response.headers["Location"] = f"/v1/checkpoints/{checkpoint.id}"
    return _out(checkpoint)


@router.get("", responses=declared())
def list_checkpoints(
    caller: Reader,
    ctx: Ctx,
    name: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    limit: Limit = 50,
    page_token: PageToken = None,
) -> CheckpointPage:
    """Checkpoints, newest first."""
    with ctx.database.reading() as session:
        found = service.page(session, caller.tenant, name, decode_id(page_token), limit)
    following = encode_token(found[-1].id) if len(found) == limit else None
    return CheckpointPage(items=[_out(checkpoint) for checkpoint in found], next_page_token=following)


@router.get("/{checkpoint_id}", responses=declared(404))
def get_checkpoint(checkpoint_id: str, caller: Reader, ctx: Ctx) -> CheckpointOut:
    """One checkpoint."""
    with ctx.database.reading() as session:
        return _out(service.get(session, caller.tenant, checkpoint_id))


@router.get("/{checkpoint_id}/tensors", responses=declared(404))
def list_tensors(
    checkpoint_id: str, caller: Reader, ctx: Ctx, limit: Limit = 1000, page_token: PageToken = None
) -> TensorPage:
    """The checkpoint's tensors, by name."""
    start = decode_number(page_token)
    with ctx.database.reading() as session:
        checkpoint = service.get(session, caller.tenant, checkpoint_id)
    found = service.tensors(checkpoint, ctx.blobs, start, limit)
    items = [TensorOut(name=spec.name, dtype=spec.dtype, shape=list(spec.shape), file=path) for spec, path in found]
    return TensorPage(items=items, next_page_token=encode_token(start + limit) if len(items) == limit else None)


@router.delete("/{checkpoint_id}", status_code=204, responses=declared(404, 409))
def delete_checkpoint(checkpoint_id: str, caller: Uploader, ctx: Ctx) -> None:
    """Remove a checkpoint that no fusion uses; its bytes stay on the disk until a collector comes."""
    with ctx.database.transaction() as session:
        service.delete(session, caller.tenant, checkpoint_id)


def _out(checkpoint: Checkpoint) -> CheckpointOut:
    return CheckpointOut(
        id=checkpoint.id,
        name=checkpoint.name,
        sha256=checkpoint.sha256,
        tensors=checkpoint.tensors,
        parameters=checkpoint.parameters,
        dtypes=checkpoint.dtypes,
        network_kind=checkpoint.network_kind,
        files=[UploadedFileOut(path=file.path, size=file.size, sha256=file.digest) for file in checkpoint.files],
        created_at=checkpoint.created_at,
    )
