"""The decision trace over HTTP: as lines of JSON or as Parquet, filtered, in pages; and its summary per layer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from app.context import Context, Ctx
from app.errors import declared
from app.fusions import service, trace_file
from app.fusions.downloads import blob_response
from app.fusions.schemas import LayerSummary, SourceShare, TraceSummary
from app.fusions.trace_file import Filters, LayerTally
from app.paging import PageToken, decode_number, encode_token
from app.store.blobs import CHUNK
from app.store.models import Artifact

router = APIRouter(prefix="/fusions", tags=["trace"])
NDJSON = "application/x-ndjson"
PARQUET = "application/vnd.apache.parquet"
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Decisions in order", "content": {NDJSON: {}, PARQUET: {}}},
    **declared(404, 409),
}


@router.get("/{fusion_id}/trace", responses=_ANSWERS, response_class=Response)
def get_trace(
    fusion_id: str,
    request: Request,
    ctx: Ctx,
    layer: Annotated[str | None, Query(max_length=512)] = None,
    kind: Annotated[Literal["tensor", "layer", "neuron", "weight"] | None, Query(description="granularity")] = None,
    action: Annotated[Literal["merged", "refined", "rolled_back", "skipped"] | None, Query()] = None,
    limit: Annotated[int | None, Query(ge=1, le=10_000, description="how many lines; all, if left out")] = None,
    page_token: PageToken = None,
) -> Response:
    """The decisions of a fusion that succeeded; with ``limit``, the Link header leads to the next page.

    Accept: application/vnd.apache.parquet gives one Parquet file instead of lines of JSON.
    """
    filters = Filters(layer, kind, action)
    file, path = _trace_of(ctx, fusion_id)
    if PARQUET in request.headers.get("Accept", ""):
        if not filters:
            return blob_response(request, path, file.path, file.digest, file.size)
        copy = trace_file.filtered_copy(path, filters)
        return StreamingResponse(_drained(copy), media_type=PARQUET)
    start = decode_number(page_token)
    if limit is None:
        return StreamingResponse(trace_file.pieces(path, filters, start), media_type=NDJSON)
    text, following = trace_file.page(path, filters, start, limit)
    headers = {} if following is None else {"Link": f'<{_next_link(request, following)}>; rel="next"'}
    return Response(text, headers=headers, media_type=NDJSON)


@router.get("/{fusion_id}/trace/summary", responses=declared(404, 409))
def get_trace_summary(fusion_id: str, ctx: Ctx) -> TraceSummary:
    """What happened to each layer: visits, accepted, rolled back, shares of the sources, loss gained."""
    _, path = _trace_of(ctx, fusion_id)
    with ctx.database.reading() as session:
        recipe = service.get(session, fusion_id).recipe
    names = [source["name"] for source in recipe["sources"]]
    return TraceSummary(layers=[_layer(name, found, names) for name, found in trace_file.tally(path).items()])


def _trace_of(ctx: Context, fusion_id: str) -> tuple[Artifact, Path]:
    with ctx.database.reading() as session:
        file = service.artifact(session, fusion_id, service.TRACE_PATH)
    return file, ctx.blobs.path(file.digest)


def _layer(layer: str, found: LayerTally, names: list[str]) -> LayerSummary:
    shares = zip(names, found.mean_shares, strict=False)  # none where no decision mixed
    return LayerSummary(
        layer=layer,
        visits=found.visits,
        accepted=found.accepted,
        rolled_back=found.rolled_back,
        skipped=found.skipped,
        shares=[SourceShare(source=name, mean_share=share) for name, share in shares],
        loss_gained=found.loss_gained,
    )


def _next_link(request: Request, row: int) -> str:
    kept = [(key, value) for key, value in request.query_params.multi_items() if key != "page_token"]
    return f"{request.url.path}?{urlencode([*kept, ('page_token', encode_token(row))])}"


async def _drained(copy: IO[bytes]) -> AsyncIterator[bytes]:
    with copy:
        while piece := await run_in_threadpool(copy.read, CHUNK):
            yield piece
