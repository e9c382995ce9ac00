"""Checkpoints over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.auth import Reader, Uploader
from app.checkpoints import service
from app.checkpoints.schemas import CheckpointIn, CheckpointOut, CheckpointPage, TensorOut, TensorPage
from app.context import Context, Ctx
from app.errors import declared
from app.examining.examiners import CheckpointFacts
from app.idempotency import Once
from app.idempotency.once import CallOnce
from app.paging import Limit, PageToken, decode_id, decode_number, encode_token
from app.store.models import Checkpoint
from app.store.ownership import Owner
from app.uploads.names import NAME_PATTERN
from app.uploads.schemas import UploadedFileOut

router = APIRouter(prefix="/checkpoints", tags=["checkpoints"])


@router.post("", status_code=201, response_model=CheckpointOut, responses=declared(400, 409, 413, 503))
async def create_checkpoint(wanted: CheckpointIn, request: Request, caller: Uploader, once: Once, ctx: Ctx) -> Response:
    """Make a checkpoint of uploaded files; their headers are checked, and every problem is listed."""
    candidate = await run_in_threadpool(_gather, ctx, caller.owner, wanted)
    # Outside of transactions: a long header must not stop writers.
    facts = await service.examine(candidate, ctx.blobs, ctx.examiners, request)
    return await run_in_threadpool(_create, ctx, caller.owner, candidate, facts, once)


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
    return _out(_get(ctx, caller.tenant, checkpoint_id))


@router.get("/{checkpoint_id}/tensors", responses=declared(404, 410, 503))
async def list_tensors(
    checkpoint_id: str, request: Request, caller: Reader, ctx: Ctx, limit: Limit = 1000, page_token: PageToken = None
) -> TensorPage:
    """The checkpoint's tensors, by name."""
    start = decode_number(page_token)
    checkpoint = await run_in_threadpool(_get, ctx, caller.tenant, checkpoint_id)
    found = await service.tensors(checkpoint, ctx.blobs, ctx.examiners, start, limit, request)
    items = [TensorOut(name=one.name, dtype=one.dtype, shape=one.shape, file=one.file) for one in found]
    return TensorPage(items=items, next_page_token=encode_token(start + limit) if len(items) == limit else None)


@router.delete("/{checkpoint_id}", status_code=204, responses=declared(404, 409))
def delete_checkpoint(checkpoint_id: str, caller: Uploader, ctx: Ctx) -> None:
    """Remove a checkpoint that no fusion uses; its bytes are collected once nothing else refers to them."""
    with ctx.database.transaction() as session:
        service.delete(session, caller.tenant, checkpoint_id)


def _gather(ctx: Context, owner: Owner, wanted: CheckpointIn) -> service.Candidate:
    with ctx.database.transaction() if wanted.blobs else ctx.database.reading() as session:
        candidate = service.gather(session, owner, wanted)
        if wanted.blobs:
            ctx.quotas.check_bytes(session, owner)  # bytes count wherever they stand, though none came now
        return candidate


def _create(
    ctx: Context, owner: Owner, candidate: service.Candidate, facts: CheckpointFacts, once: CallOnce
) -> Response:
    with ctx.database.transaction() as session:
        once.begin(session)
        checkpoint = service.create(session, owner, candidate, facts)
        if any(file.owner != owner.account for file in candidate.files):
            ctx.quotas.check_bytes(session, owner)  # what another account brought counts as this one's now
        return once.answer(session, 201, _out(checkpoint), {"Location": f"/v1/checkpoints/{checkpoint.id}"})


def _get(ctx: Context, tenant: str, checkpoint_id: str) -> Checkpoint:
    with ctx.database.reading() as session:
        return service.get(session, tenant, checkpoint_id)


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
