"""One attempt at one fusion: claimed, kept alive while it runs, and closed in whichever way it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import tracing
from app.settings import Settings
from app.store import jobs
from app.store.blobs import BlobCollected, BlobStore, StorageError
from app.store.database import Database
from app.store.ids import FusionId
from app.store.outages import Outage, outage_in
from cogram_core.determinism import resolve_device, resolve_threads
from cogram_core.errors import CogramError, FusionStopped, InvalidInput
from cogram_core.observer import StageInfo
from cogram_core.recipe import Recipe
from worker.keeper import Holder, Keeper, Stop
from worker.reaper import sweep_fusion
from worker.results import as_json, place_output, sync_output
from worker.spans import AttemptSpans, attempt_spans
from worker.workspace import Workspace

if TYPE_CHECKING:
    from cogram_core.pipeline import Fusion
    from cogram_core.trace import Decision

log = structlog.get_logger("worker.lease")

_RETRY_SECONDS = 0.5
_OUTAGE_SECONDS = 1.0  # before a job goes back because of the database, so that an outage makes no whirl of attempts

T = TypeVar("T")
Ending = Callable[[Session, jobs.Claim], bool]


class Job:
    """A held attempt: what the core needs to run it, and the observer that it reports to."""

    def __init__(
        self, claim: jobs.Claim, keeper: Keeper, workspace: Workspace, store: Store, spans: AttemptSpans
    ) -> None:
        self.claim = claim
        self.output = workspace.output
        self.journal = workspace.journal
        self.ending: Ending | None = None
        self._keeper = keeper
        self._workspace = workspace
        self._store = store
        self._spans = spans

    @cached_property
    def recipe(self) -> Recipe:
        """What to do. What it leaves to the machine is decided once, so that every attempt gives the same bytes."""
        recipe = Recipe.from_document(self.claim.recipe)
        chosen = {"device": str(resolve_device(recipe.device)), "threads": resolve_threads(recipe.threads)}
        settled = recipe.model_copy(update=chosen)
        if settled != recipe:
            with self._store.database.transaction() as session:
                jobs.settle(session, self.claim, settled.to_document())
        return settled

    @cached_property
    def inputs(self) -> dict[str, Path]:
        """Where each checkpoint and dataset of the recipe lies; laid out when first asked for."""
        self._workspace.create()
        self._keeper.alive("while its inputs were fetched")
        references = self.recipe.references()
        return self._workspace.lay_out(self._store.database, self._store.blobs, references, self._keeper.alive)

    @property
    def earlier(self) -> list[Path]:
        """The journals of earlier attempts."""
        return self._workspace.earlier_journals()

    def finish(self, result: Fusion) -> None:
        """The core is done: its output becomes blobs, and a result once the job closes with the lease still held."""
        self._keeper.alive("while its result was stored")
        with tracing.span("store the result"):
            alive = self._keeper.alive
            contents = sync_output(self.output, alive)
            announced = self._patiently(lambda: self._store.blobs.announce(contents.values()))
            artifacts = place_output(self.output, dict(zip(contents, announced, strict=True)), self._store.blobs, alive)
        self.ending = partial(jobs.finish_succeeded, verdict=as_json(result.verdict), artifacts=artifacts)

    def _patiently(self, step: Callable[[], T]) -> T:
        """A database out of reach is asked again for as long as the lease may still hold."""
        while True:
            try:
                return step()
            except SQLAlchemyError as error:
                if outage_in(error) is None or time.monotonic() > self._keeper.deadline:
                    raise
                log.warning("result not announced yet", error=str(error))
                time.sleep(_RETRY_SECONDS)

    def stage_started(self, stage: StageInfo) -> None:
        """A stage begins."""
        self._keeper.alive(f"in stage {stage.index + 1} of {stage.count} ({stage.method})")
        self._keeper.events.stage_started(stage)
        self._spans.stage_started(stage)

    def progress(self, stage: StageInfo, done: int, total: int) -> None:  # noqa: ARG002  # stages follow one another
        """``done`` of ``total`` steps of the stage's current pass are behind it."""
        self._keeper.alive()
        self._keeper.events.progress(done, total)

    def decision(self, decision: Decision) -> None:
        """One unit was merged, refined, rolled back or skipped."""
        self._keeper.alive()
        self._keeper.events.decision(decision)

    def resumed(self, decisions: int) -> None:
        """What an earlier attempt had decided stands again; from here on this one decides."""
        self._keeper.alive()
        self._keeper.events.resumed(decisions)

    def stage_finished(self, stage: StageInfo) -> None:
        """A stage ended."""
        self._keeper.alive(f"after stage {stage.index + 1} of {stage.count} ({stage.method})")
        self._keeper.events.stage_finished(stage)
        self._spans.stage_finished()

    def should_stop(self) -> bool:
        """True once the fusion is cancelled, the lease is lost or the worker stops."""
        self._keeper.alive()
        return self._keeper.stop is not None


@dataclass(frozen=True)
class Store:
    """What app and worker share."""

    database: Database
    blobs: BlobStore


class Ledger:
    """Where a worker gets its jobs from and brings them back to."""

    def __init__(self, store: Store, settings: Settings, holder: Holder) -> None:
        self._store = store
        self._settings = settings
        self._holder = holder
        self.cache_bytes = settings.cache_bytes
        self.cache = settings.cache_dir if settings.cache_bytes else None

    @contextmanager
    def lease(self, fusion_id: FusionId) -> Iterator[Job | None]:
        """The job for as long as the block runs; None if it is done, or held by a live worker.

        However the block ends, the attempt's folder is emptied but for its journal, from which a later attempt may go on,
        and then the job is closed: with the result given to ``finish``, or according to the exception that left the block,
        which goes no further. Once the fusion has ended, the journals go as well.
        """
        claim = self._claim(fusion_id)
        if claim is None:
            log.info("nothing to do", fusion_id=fusion_id)
            yield None
            return
        with _in_logs(claim), attempt_spans(claim) as spans:
            log.info("fusion started", worker=self._holder.name)
            workspace = Workspace(self._settings.work_dir, fusion_id, claim.attempt)
            keeper = Keeper(self._store.database, self._settings, claim, self._holder)
            job = Job(claim, keeper, workspace, self._store, spans)
            keeper.start()
            try:
                yield job
            except Exception as error:
                spans.broke_off(type(error).__name__)
                job.ending = _ending_after(error, keeper.stop, workspace)
            finally:
                workspace.leave()
                keeper.end()
            self._close(claim, keeper, job.ending)
            keeper.over()
            self._clear_up(workspace)

    def _claim(self, fusion_id: FusionId) -> jobs.Claim | None:
        settings = self._settings
        with self._store.database.transaction() as session:
            return jobs.claim(session, fusion_id, self._holder.name, settings.lease_seconds, settings.max_attempts)

    def _close(self, claim: jobs.Claim, keeper: Keeper, ending: Ending | None) -> None:
        """A database out of reach is asked again for as long as the lease may still hold."""
        while ending is not None:
            try:
                keeper.write_events()
                with self._store.database.transaction() as session:
                    closed = ending(session, claim) or jobs.finish_cancelled(session, claim)
            except BlobCollected:  # it took too long to store; the next attempt goes on from the journal
                log.warning("the result was collected before it was recorded")
                ending = partial(jobs.release, seen="its result took too long to store")
            except SQLAlchemyError as error:
                log.warning("fusion not closed yet", error=str(error))
                if time.monotonic() > keeper.deadline:
                    break
                time.sleep(_RETRY_SECONDS)
            else:
                log.info("fusion closed" if closed else "lease lost, nothing is written")
                return
        log.warning("fusion left to the next worker")

    def _clear_up(self, workspace: Workspace) -> None:
        try:
            sweep_fusion(self._store.database, workspace.fusion_dir)
        except SQLAlchemyError as error:
            log.warning("folders are left to the reaper", error=str(error))


def _in_logs(claim: jobs.Claim) -> AbstractContextManager[Any]:
    """Every line that is logged in the block says of which job, attempt and request it is."""
    named = {"fusion_id": claim.fusion_id, "attempt": claim.attempt, "request_id": claim.origin.request_id}
    traceparent = claim.origin.traceparent
    trace = {} if traceparent is None else {"trace_id": traceparent.split("-")[1]}
    return structlog.contextvars.bound_contextvars(**named, **trace)


def _ending_after(error: Exception, stop: Stop | None, workspace: Workspace) -> Ending | None:
    if stop is Stop.LOST:
        return None
    if isinstance(error, FusionStopped) and stop is Stop.CANCELLED:
        return jobs.finish_cancelled
    if isinstance(error, FusionStopped) and stop is Stop.SHUTDOWN:
        return partial(jobs.release, seen="its worker was stopped")
    if isinstance(error, InvalidInput):
        return partial(jobs.finish_failed, error=_refused(error))
    if isinstance(error, StorageError):
        log.warning("fusion given back", error=str(error), cause=repr(error.__cause__))
        time.sleep(_OUTAGE_SECONDS)
        return partial(jobs.release, seen=str(error))
    log.error("fusion failed", exc_info=error)
    outage = outage_in(error)
    if outage is Outage.FULL and isinstance(error, OSError):
        detail = (
            f"The worker's disk takes no more ({error.strerror}); make room where COGRAM_DATA_DIR lies, and retry it."
        )
        return partial(jobs.finish_failed, error={"code": "storage.full", "detail": detail, "errors": []})
    if outage is not None:
        time.sleep(_OUTAGE_SECONDS)
        return partial(jobs.release, seen=f"the database failed: {type(error).__name__}")
    if isinstance(error, CogramError):
        # Where the attempt's folder lies on this machine is nobody's business; a file's name in it helps.
        detail = str(error).replace(f"{workspace.path}/", "")
        return partial(jobs.finish_failed, error={"code": error.code, "detail": detail, "errors": []})
    # What nobody foresaw may name paths and values of this machine: they stay in its log.
    detail = f"{type(error).__name__}; see the worker's log for {workspace.fusion_dir.name}."
    return partial(jobs.finish_failed, error={"code": "fusion.internal", "detail": detail, "errors": []})


def _refused(error: InvalidInput) -> dict[str, Any]:
    more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
    return {
        "code": error.code,
        "detail": f"{error.problems[0]}{more}",
        "errors": [asdict(problem) for problem in error.problems],
    }
