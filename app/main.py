"""The HTTP application: one factory that puts the domains together. Made for ``uvicorn --factory app.main:create_app``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool

from app import errors, health, methods
from app.auth.gate import Gate
from app.auth.middleware import OPEN, Authentication
from app.body_limit import BodyLimit
from app.checkpoints.endpoints import router as checkpoints
from app.context import Context
from app.datasets.endpoints import router as datasets
from app.examining.examiners import Examiners
from app.fusions.artifacts import router as artifacts
from app.fusions.bell import Bell
from app.fusions.documents import recipe_schemas, yaml_reader
from app.fusions.endpoints import router as fusions
from app.fusions.events import router as events
from app.fusions.trace_process import TraceReaders
from app.fusions.traces import router as traces
from app.fusions.waiting import Waiting
from app.host_check import HostCheck
from app.idempotency import AnsweredBefore
from app.known_parameters import only_known_parameters
from app.metrics.requests import MeasuredRequests, RequestMetrics
from app.metrics.server import new_registry, serve_metrics
from app.quotas import Quotas
from app.request_limits import RequestLimits
from app.request_scope import RequestScope
from app.settings import Settings
from app.storage_away import tell_blob_gone, tell_storage_error
from app.store.blobs import BlobGone, StorageError, open_blobs
from app.store.database import Database
from app.store.staging import Staging
from app.traced_requests import TracedRequests
from app.tracing import flush_traces
from app.uploads.endpoints import router as uploads
from app.uploads.tus.endpoints import router as tus
from app.uploads.tus.envelope import TusEnvelope
from app.webhooks.endpoints import router as webhooks


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application over the parts that ``settings`` name; those of the environment, if left out."""
    chosen = settings or Settings()
    app = FastAPI(
        title="CoGraM Fusion",
        version="1.0",  # of the contract under /v1
        summary="Fuses trained neural network checkpoints into one, without retraining, and records every decision.",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # the stock pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    database = Database(chosen.resolved_database_url)
    blobs = open_blobs(chosen, database)
    app.state.context = Context(
        chosen,
        database,
        blobs,
        Staging(chosen.uploads_dir),
        Bell(database, poll_seconds=chosen.poll_seconds),
        Waiting(chosen.lease_seconds),
        Examiners(chosen),
        Quotas.of(chosen, blobs.incoming.free_bytes),
    )
    app.state.trace_readers = TraceReaders(chosen)
    app.state.yaml_reader = yaml_reader()
    v1 = APIRouter(prefix="/v1", dependencies=[Depends(only_known_parameters)])
    for router in (
        fusions,  # first, as they are what is asked for most, and routes are tried in turn
        events,
        uploads,
        tus,
        checkpoints,
        datasets,
        traces,
        artifacts,
        webhooks,
        methods.router,
    ):
        v1.include_router(router)
    app.include_router(v1)
    # Not in v1: a probe may add to its address what it likes, and must not take a healthy process for a sick one.
    app.include_router(health.router, prefix="/v1")
    app.include_router(health.router, include_in_schema=False)
    errors.install(app)
    app.add_exception_handler(AnsweredBefore, _answer_again)
    app.add_exception_handler(StorageError, tell_storage_error)
    app.add_exception_handler(BlobGone, tell_blob_gone)
    app.add_middleware(BodyLimit, limit=chosen.max_json_bytes, seconds=chosen.body_idle_seconds)
    app.add_middleware(Authentication, gate=Gate(chosen, database), settings=chosen)
    app.add_middleware(HostCheck, settings=chosen)
    app.add_middleware(RequestLimits, settings=chosen)
    app.add_middleware(RequestScope, last_resort=errors.unforeseen)
    app.add_middleware(TracedRequests)
    app.state.metrics = new_registry()
    app.add_middleware(MeasuredRequests, metrics=RequestMetrics(app.state.metrics))
    app.add_middleware(TusEnvelope)
    app.openapi = lambda: _openapi(app, chosen.credentials_required)  # type: ignore[method-assign]
    return app


async def _answer_again(_request: Request, repeated: Exception) -> Response:
    assert isinstance(repeated, AnsweredBefore)
    return repeated.answer


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    context: Context = app.state.context
    context.examiners.warm()
    metrics = serve_metrics(context.settings, "api", app.state.metrics)
    yield
    if metrics is not None:
        metrics.close()
    context.bell.close()
    await context.examiners.close()
    await run_in_threadpool(flush_traces)
    context.database.close()


def _openapi(app: FastAPI, credentials_required: bool) -> dict[str, Any]:
    """The contract; with the schemas of problems and recipes, and credentials if they are needed."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        document["components"]["schemas"].update(errors.problem_schemas() | recipe_schemas())
        if credentials_required:
            document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                if credentials_required and path not in OPEN:
                    operation["security"] = [{"bearer": []}]
        app.openapi_schema = document
    return app.openapi_schema
