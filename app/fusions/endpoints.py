"""Fusions over HTTP: submit, look, wait, cancel, delete. Events, traces and artifacts have modules of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.auth import Fuser, Reader
from app.context import Context, Ctx
from app.errors import ProblemEntry, declared
from app.fusions import checking, contract, service
from app.fusions.documents import RECIPE_BODY, read_document
from app.fusions.preconditions import none_match
from app.fusions.presenting import RETRY_AFTER, Rendered, fusion_out
from app.fusions.schemas import Estimates, FusionOut, FusionPage, ValidationOut
from app.idempotency import Once
from app.idempotency.once import CallOnce
from app.paging import Limit, PageToken, decode_id, encode_token
from app.store.models import Fusion
from app.store.ownership import Owner
from app.store.states import FINAL, FusionState

router = APIRouter(prefix="/fusions", tags=["fusions"])
Document = Annotated[Mapping[str, Any], Depends(read_document)]


@router.post(
    "",
    status_code=202,
    response_model=FusionOut,
    responses=declared(400, 413, 415, 503, 507),
    openapi_extra=RECIPE_BODY,
)
async def create_fusion(document: Document, request: Request, caller: Fuser, once: Once, ctx: Ctx) -> Response:
    """Queue a fusion. A recipe that can't be run is refused with every problem listed."""
    checked = await _checked(ctx, caller.tenant, document, request)
    return await run_in_threadpool(_submit, ctx, caller.owner, checked, once)


@router.post("/validate", responses=declared(400, 413, 415, 503), openapi_extra=RECIPE_BODY)
async def validate_recipe(document: Document, request: Request, caller: Reader, ctx: Ctx) -> ValidationOut:
    """Run every check of a submission, and queue nothing."""
    checked = await _checked(ctx, caller.tenant, document, request)
    return ValidationOut(
        ok=not checked.problems,
        errors=[ProblemEntry.of(problem) for problem in checked.problems],
        estimates=Estimates.model_validate(checked.estimates, from_attributes=True) if checked.estimates else None,
    )


@router.get("", responses=declared())
def list_fusions(
    caller: Reader,
    ctx: Ctx,
    state: Annotated[list[FusionState] | None, Query(description="may stand several times")] = None,
    limit: Limit = 50,
    page_token: PageToken = None,
) -> FusionPage:
    """Fusions, newest first."""
    with ctx.database.reading() as session:
        found = service.page(session, caller.tenant, state or (), decode_id(page_token), limit)
        items = [fusion_out(fusion, ctx.waiting.of(session, fusion)) for fusion in found]
    following = encode_token(found[-1].id) if len(found) == limit else None
    return FusionPage(items=items, next_page_token=following)


@router.get(
    "/{fusion_id}",
    responses=contract.not_changed() | declared(404),
    response_model=FusionOut,
    openapi_extra={"parameters": [contract.IF_NONE_MATCH]},
)
async def get_fusion(
    fusion_id: str,
    request: Request,
    caller: Reader,
    ctx: Ctx,
    wait: Annotated[float, Query(ge=0, le=30, description="seconds to wait for the end, or for a change")] = 0,
) -> Response:
    """One fusion.

    With ``wait``, the answer comes when the fusion has ended, or the time is up; with ``If-None-Match`` as well, as soon
    as anything has changed.
    """
    known = request.headers.get("If-None-Match")
    deadline = time.monotonic() + wait
    while True:
        heard = ctx.bell.rings
        found = await run_in_threadpool(_look, ctx, caller.tenant, fusion_id)
        fresh = none_match(known, found.tag)
        left = deadline - time.monotonic()
        if found.state in FINAL or (known and fresh) or left <= 0 or ctx.bell.closed:
            break
        await ctx.bell.wait(heard, left)
    headers = {"ETag": found.tag} | ({} if found.state in FINAL else RETRY_AFTER)
    if not fresh:
        return Response(status_code=304, headers=headers)
    return Response(found.body, headers=headers, media_type="application/json")


@router.post("/{fusion_id}/cancel", status_code=202, responses=declared(404, 409))
def cancel_fusion(fusion_id: str, caller: Fuser, ctx: Ctx) -> FusionOut:
    """Ask a fusion to stop; a queued one ends at once, a running one within moments."""
    with ctx.database.transaction() as session:
        return fusion_out(service.cancel(session, caller.tenant, fusion_id))


@router.post("/{fusion_id}/retry", status_code=202, response_model=FusionOut, responses=declared(404, 409, 503, 507))
def retry_fusion(fusion_id: str, caller: Fuser, once: Once, ctx: Ctx) -> Response:
    """Queue a new fusion with the recipe and the inputs of one that failed or was cancelled; that one stays as it is."""
    ctx.quotas.check_disk()
    with ctx.database.transaction() as session:
        once.begin(session)
        fusion = service.retry(session, caller.owner, fusion_id, ctx.quotas)
        return once.answer(session, 202, fusion_out(fusion), _where(fusion))


@router.delete("/{fusion_id}", status_code=204, responses=declared(404, 409))
def delete_fusion(fusion_id: str, caller: Fuser, ctx: Ctx) -> None:
    """Remove a fusion that has ended, its events and artifacts; their bytes are collected once nothing else needs them."""
    with ctx.database.transaction() as session:
        service.delete(session, caller.tenant, fusion_id)


async def _checked(ctx: Context, tenant: str, document: Mapping[str, Any], request: Request) -> checking.Checked:
    found = await run_in_threadpool(_resolve, ctx, tenant, document)
    return await checking.compare(found, ctx.blobs, ctx.examiners, request)


def _resolve(ctx: Context, tenant: str, document: Mapping[str, Any]) -> checking.Checked:
    with ctx.database.reading() as session:
        return checking.resolve(session, tenant, document)


def _submit(ctx: Context, owner: Owner, checked: checking.Checked, once: CallOnce) -> Response:
    ctx.quotas.check_disk()
    with ctx.database.transaction() as session:
        once.begin(session)
        fusion = service.submit(session, owner, checked, ctx.quotas)
        return once.answer(session, 202, fusion_out(fusion), _where(fusion))


def _where(fusion: Fusion) -> dict[str, str]:
    return {"Location": f"/v1/fusions/{fusion.id}", **RETRY_AFTER}


def _look(ctx: Context, tenant: str, fusion_id: str) -> Rendered:
    with ctx.database.reading() as session:
        fusion = service.get(session, tenant, fusion_id)
        return Rendered.of(fusion, ctx.waiting.of(session, fusion))
