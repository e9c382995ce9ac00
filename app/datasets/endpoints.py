"""Datasets over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.auth import Reader, Uploader
from app.context import Context, Ctx
from app.datasets import service
from app.datasets.schemas import DatasetIn, DatasetOut, DatasetPage
from app.errors import declared
from app.idempotency import Once
from app.idempotency.once import CallOnce
from app.paging import Limit, PageToken, decode_id, encode_token
from app.store.models import Dataset, UploadedFile
from app.store.ownership import Owner
from app.uploads.names import NAME_PATTERN
from app.uploads.schemas import UploadedFileOut
from cogram_core.preflight import DatasetFacts

router = APIRouter(prefix="/datasets", tags=["datasets"])


@router.post("", status_code=201, response_model=DatasetOut, responses=declared(400, 409, 413, 503))
async def create_dataset(wanted: DatasetIn, request: Request, caller: Uploader, once: Once, ctx: Ctx) -> Response:
    """Make a dataset of an uploaded file; it is checked, and every problem is listed."""
    file = await run_in_threadpool(_gather, ctx, caller.owner, wanted)
    # Outside of transactions: a long look must not stop writers.
    facts = await service.examine(file, ctx.blobs, ctx.examiners, request)
    return await run_in_threadpool(_create, ctx, caller.owner, file, facts, once)


@router.get("", responses=declared())
def list_datasets(
    caller: Reader,
    ctx: Ctx,
    name: Annotated[str | None, Query(pattern=NAME_PATTERN)] = None,
    limit: Limit = 50,
    page_token: PageToken = None,
) -> DatasetPage:
    """Datasets, newest first."""
    with ctx.database.reading() as session:
        found = service.page(session, caller.tenant, name, decode_id(page_token), limit)
    following = encode_token(found[-1].id) if len(found) == limit else None
    return DatasetPage(items=[_out(dataset) for dataset in found], next_page_token=following)


@router.get("/{dataset_id}", responses=declared(404))
def get_dataset(dataset_id: str, caller: Reader, ctx: Ctx) -> DatasetOut:
    """One dataset."""
    with ctx.database.reading() as session:
        return _out(service.get(session, caller.tenant, dataset_id))


@router.delete("/{dataset_id}", status_code=204, responses=declared(404, 409))
def delete_dataset(dataset_id: str, caller: Uploader, ctx: Ctx) -> None:
    """Remove a dataset that no fusion uses; its bytes are collected once nothing else refers to them."""
    with ctx.database.transaction() as session:
        service.delete(session, caller.tenant, dataset_id)


def _gather(ctx: Context, owner: Owner, wanted: DatasetIn) -> UploadedFile:
    with ctx.database.transaction() if wanted.blobs else ctx.database.reading() as session:
        file = service.gather(session, owner, wanted)
        if wanted.blobs:
            ctx.quotas.check_bytes(session, owner)  # bytes count wherever they stand, though none came now
        return file


def _create(ctx: Context, owner: Owner, file: UploadedFile, facts: DatasetFacts, once: CallOnce) -> Response:
    with ctx.database.transaction() as session:
        once.begin(session)
        dataset = service.create(session, owner, file, facts)
        if file.owner != owner.account:
            ctx.quotas.check_bytes(session, owner)  # what another account brought counts as this one's now
        return once.answer(session, 201, _out(dataset), {"Location": f"/v1/datasets/{dataset.id}"})


def _out(dataset: Dataset) -> DatasetOut:
    return DatasetOut(
        id=dataset.id,
        name=dataset.name,
        sha256=dataset.digest,
        examples=dataset.examples,
        input_shape=dataset.input_shape,
        target_min=dataset.target_min,
        target_max=dataset.target_max,
        loss=dataset.loss,
        target_shape=dataset.target_shape,
        token_min=dataset.token_min,
        token_max=dataset.token_max,
        files=[UploadedFileOut(path=dataset.path, size=dataset.size, sha256=dataset.digest)],
        created_at=dataset.created_at,
    )
