"""The decision trace over HTTP: as lines of JSON or as Parquet, filtered, in pages; and its summary per layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.auth import Reader
from app.context import Context, Ctx
from app.errors import declared
from app.fetching import fetch
from app.fusions import contract, service
from app.fusions.downloads import blob_response
from app.fusions.schemas import LayerSummary, SourceShare, TraceSummary
from app.fusions.trace_process import ReadingResponse, TraceReaders, TraceReading
from app.fusions.trace_query import Filters, TraceQuery
from app.paging import PageToken, decode_number, encode_token
from app.store.blobs import StoredBlob


async def _readers(request: Request) -> TraceReaders:
    found = request.app.state.trace_readers
    assert isinstance(found, TraceReaders)
    return found


Action = Literal["merged", "solved", "aligned", "trained", "refined", "rolled_back", "skipped"]
Readers = Annotated[TraceReaders, Depends(_readers)]
router = APIRouter(prefix="/fusions", tags=["trace"])
NDJSON = "application/x-ndjson"
PARQUET = "application/vnd.apache.parquet"
_ANSWERS: dict[int | str, dict[str, Any]] = contract.downloads((NDJSON, PARQUET)) | declared(
    404, 409, 410, 412, 416, 503
)


@router.get("/{fusion_id}/trace", responses=_ANSWERS, openapi_extra=contract.DOWNLOAD, response_class=Response)
async def get_trace(
    fusion_id: str,
    request: Request,
    caller: Reader,
    ctx: Ctx,
    readers: Readers,
    layer: Annotated[str | None, Query(max_length=512)] = None,
    kind: Annotated[Literal["tensor", "layer", "neuron", "weight"] | None, Query(description="granularity")] = None,
    action: Annotated[Action | None, Query()] = None,
    limit: Annotated[int | None, Query(ge=1, le=10_000, description="how many lines; all, if left out")] = None,
    page_token: PageToken = None,
) -> Response:
    """The decisions of a fusion that succeeded; with ``limit``, the Link header leads to the next page.

    Accept: application/vnd.apache.parquet gives one Parquet file instead of lines of JSON; without filters it is the
    artifact itself, with its entity tag: ranges of it can be had, and only there conditions count.
    """
    filters = Filters(layer, kind, action)
    first = decode_number(page_token)
    blob = await run_in_threadpool(_trace_of, ctx, caller.tenant, fusion_id)
    if PARQUET not in request.headers.get("Accept", ""):
        reading = await _read(
            ctx, blob, request, readers, lambda path: TraceQuery(path, "lines", filters, first, limit)
        )
        return _answer(request, readers, reading, NDJSON)
    if not filters:
        return blob_response(request, ctx.blobs.storage, service.TRACE_PATH, blob)
    reading = await _read(ctx, blob, request, readers, lambda path: TraceQuery(path, "parquet", filters))
    return _answer(request, readers, reading, PARQUET)


@router.get("/{fusion_id}/trace/summary", responses=declared(404, 409, 410, 503))
async def get_trace_summary(
    fusion_id: str, request: Request, caller: Reader, ctx: Ctx, readers: Readers
) -> TraceSummary:
    """What happened to each layer: visits, accepted, rolled back, shares of the sources, loss gained."""
    blob = await run_in_threadpool(_trace_of, ctx, caller.tenant, fusion_id)
    names = await run_in_threadpool(_source_names, ctx, caller.tenant, fusion_id)
    reading = await _read(ctx, blob, request, readers, lambda path: TraceQuery(path, "summary"))
    try:
        layers = json.loads(await reading.whole())
    finally:
        readers.end(reading)
    return TraceSummary(layers=[_layer(found, names) for found in layers])


async def _read(
    ctx: Context, blob: StoredBlob, request: Request, readers: TraceReaders, query: Callable[[str], TraceQuery]
) -> TraceReading:
    """A reading of the trace, which stays where the reader finds it until the reading ends."""
    held = ExitStack()
    path = await fetch(ctx.blobs.storage.whole(blob), held)
    return await readers.read(query(str(path)), request, held.close)


def _answer(request: Request, readers: TraceReaders, reading: TraceReading, media_type: str) -> Response:
    following = reading.following
    headers = {"X-Accel-Buffering": "no"}  # a proxy that takes all at once, and then nothing, looks like a slow taker
    if following is not None:
        headers["Link"] = f'<{_next_link(request, following)}>; rel="next"'
    return ReadingResponse(readers, reading, media_type, headers)


def _trace_of(ctx: Context, tenant: str, fusion_id: str) -> StoredBlob:
    with ctx.database.reading() as session:
        file = service.artifact(session, tenant, fusion_id, service.TRACE_PATH)
    return StoredBlob(file.digest, file.size)


def _source_names(ctx: Context, tenant: str, fusion_id: str) -> list[str]:
    with ctx.database.reading() as session:
        return [source["name"] for source in service.get(session, tenant, fusion_id).recipe["sources"]]


def _layer(found: dict[str, Any], names: list[str]) -> LayerSummary:
    means = found.pop("mean_shares")  # none where no decision mixed
    shares = [SourceShare(source=name, mean_share=share) for name, share in zip(names, means, strict=False)]
    return LayerSummary(**found, shares=shares)


def _next_link(request: Request, row: int) -> str:
    kept = [(key, value) for key, value in request.query_params.multi_items() if key != "page_token"]
    return f"{request.url.path}?{urlencode([*kept, ('page_token', encode_token(row))])}"
