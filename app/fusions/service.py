"""Rules about fusions: which recipes are accepted, and what may be done in which state."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy.orm import Session

from app.errors import summary
from app.fusions import repository
from app.fusions.checking import Checked
from app.fusions.errors import (
    AlreadyFinal,
    AlreadySucceeded,
    ArtifactNotFound,
    FusionNotFound,
    InputsRemoved,
    NoResult,
    NotFinished,
    RecipeRefused,
)
from app.quotas import Quotas
from app.request_scope import current_request_id
from app.store import jobs
from app.store.models import Artifact, Fusion
from app.store.ownership import Owner
from app.store.states import FINAL, FusionState
from app.tracing import current_traceparent
from cogram_core.errors import Problem

TRACE_PATH = "trace.parquet"


def submit(session: Session, owner: Owner, checked: Checked, quotas: Quotas) -> Fusion:
    """Queues the job; its row and the message to the queue are one transaction.

    Raises:
        RecipeRefused: listing every problem.
        BytesUsedUp, FusionsUsedUp, TooManyAtOnce: when the account has no room for it.
    """
    if checked.problems or checked.recipe is None:
        raise RecipeRefused(summary(checked.problems), errors=checked.problems)
    wanted = {*checked.checkpoints, *checked.datasets}
    gone = wanted - repository.hold_inputs(session, wanted)
    if gone:
        problems = [
            Problem("recipe", "input.removed", f"{key} was removed while the recipe was checked")
            for key in sorted(gone)
        ]
        raise RecipeRefused(summary(problems), errors=problems)
    return _queue(session, owner, checked.recipe.to_document(), wanted, quotas)


def retry(session: Session, owner: Owner, fusion_id: str, quotas: Quotas) -> Fusion:
    """Queues a new fusion with the recipe of one that failed or was cancelled: what has ended stays as it ended.

    Raises:
        NotFinished: while there is nothing to do again.
        AlreadySucceeded: when there is a result.
        InputsRemoved: listing every input that is gone.
        FusionsUsedUp, TooManyAtOnce: when the account has no room for it.
    """
    earlier = _existing(repository.get_locked(session, owner.tenant, fusion_id), fusion_id)
    if earlier.state not in FINAL:
        raise NotFinished(f"The fusion is {earlier.state}; only one that failed or was cancelled can be tried again.")
    if earlier.state == FusionState.SUCCEEDED:
        raise AlreadySucceeded("The fusion has succeeded. To run its recipe again, POST it to /v1/fusions.")
    wanted = repository.inputs_of(session, fusion_id)
    gone = wanted - repository.hold_inputs(session, wanted)
    if gone:
        problems = [
            Problem(key, "input.removed", f"{key} was removed; upload it again and post a new recipe")
            for key in sorted(gone)
        ]
        raise InputsRemoved(summary(problems), errors=problems)
    fusion = _queue(session, owner, earlier.recipe, wanted, quotas)
    fusion.retry_of = earlier.id
    return fusion


def _queue(session: Session, owner: Owner, recipe: dict[str, Any], inputs: set[str], quotas: Quotas) -> Fusion:
    fusion = jobs.submit(session, owner, recipe, inputs, jobs.Origin(current_request_id(), current_traceparent()))
    quotas.check_fusions(session, owner)
    return fusion


def get(session: Session, tenant: str, fusion_id: str) -> Fusion:
    """Raises FusionNotFound without one."""
    return _existing(repository.get(session, tenant, fusion_id), fusion_id)


def find(session: Session, tenant: str, fusion_id: str) -> Fusion | None:
    """None without one."""
    return repository.get(session, tenant, fusion_id)


def page(
    session: Session, tenant: str, states: Collection[FusionState], before: str | None, limit: int
) -> Sequence[Fusion]:
    """Newest first."""
    return repository.page(session, tenant, states, before, limit)


def cancel(session: Session, tenant: str, fusion_id: str) -> Fusion:
    """Asks for a stop; asking again is harmless.

    Raises:
        AlreadyFinal: when it has succeeded or failed.
    """
    # Held from the first look on: one that is removed between two looks would still be in the session.
    fusion = _existing(repository.get_locked(session, tenant, fusion_id), fusion_id)
    state = jobs.request_cancel(session, fusion_id)
    if state in {FusionState.SUCCEEDED, FusionState.FAILED}:
        raise AlreadyFinal(f"The fusion has {state.value}; there is nothing to cancel.")
    return fusion


def delete(session: Session, tenant: str, fusion_id: str) -> None:
    """Removes a fusion that has ended, its events and its artifacts."""
    fusion = _existing(repository.get_locked(session, tenant, fusion_id), fusion_id)
    if fusion.state not in FINAL:
        raise NotFinished(f"The fusion is {fusion.state}; cancel it and wait for its end before it can be deleted.")
    repository.delete_all_of(session, fusion)


def artifact(session: Session, tenant: str, fusion_id: str, path: str) -> Artifact:
    """One file of a fusion that succeeded."""
    fusion = succeeded(session, tenant, fusion_id)
    for found in fusion.artifacts:
        if found.path == path:
            return found
    raise ArtifactNotFound(f"The fusion has no file {path!r}. GET /v1/fusions/{fusion_id}/artifacts lists them.")


def succeeded(session: Session, tenant: str, fusion_id: str) -> Fusion:
    """The fusion, if it has a result.

    Raises:
        NotFinished: while it may still have one.
        NoResult: when it will never have one.
    """
    fusion = get(session, tenant, fusion_id)
    if fusion.state not in FINAL:
        raise NotFinished(f"The fusion is {fusion.state}; its trace and artifacts are there once it has succeeded.")
    if fusion.state != FusionState.SUCCEEDED:
        raise NoResult(f"The fusion is {fusion.state}; it left no trace and no artifacts.")
    return fusion


def _existing(found: Fusion | None, fusion_id: str) -> Fusion:
    if found is None:
        raise FusionNotFound(f"There is no fusion {fusion_id!r}. GET /v1/fusions lists them.")
    return found
