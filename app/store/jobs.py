"""The life of a fusion job: every move between states, each one guarded UPDATE in the caller's transaction.

Only these functions change a fusion's state. ``attempt`` is the fencing token: a worker that lost its lease can't
write anything any more, because its attempt is no longer the one that runs. Events and outbox messages are written
in the transaction of the move they belong to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, case, func, or_, select, update
from sqlalchemy.orm import Session

from app.queues import FUSION_CPU, FUSION_CUDA
from app.store import deliveries, outbox
from app.store.blobs import AnnouncedBlob, record_blob
from app.store.clock import database_now
from app.store.events import EventType, append
from app.store.ids import FusionId, new_fusion_id
from app.store.models import Artifact, Event, Fusion, FusionInput
from app.store.ownership import Owner
from app.store.states import HELD, FusionState, sources_of


@dataclass(frozen=True)
class Origin:
    """Which request a job came from; it goes with the job, so that logs and traces of both can be put together."""

    request_id: str | None = None
    traceparent: str | None = None


_NO_REQUEST = Origin()


@dataclass(frozen=True)
class Claim:
    """One worker's hold on one attempt of a fusion."""

    fusion_id: FusionId
    attempt: int
    worker: str
    recipe: dict[str, Any]
    origin: Origin = _NO_REQUEST


@dataclass(frozen=True)
class ArtifactFile:
    """A placed blob that becomes an artifact, and its path in the output folder."""

    path: str
    blob: AnnouncedBlob


def queue_of(recipe: Mapping[str, Any]) -> str:
    """The queue whose workers have the device that the recipe asks for."""
    return FUSION_CUDA if str(recipe.get("device", "auto")).startswith("cuda") else FUSION_CPU


def submit(
    session: Session, owner: Owner, recipe: dict[str, Any], inputs: Iterable[str], origin: Origin = _NO_REQUEST
) -> Fusion:
    """A new queued fusion with its inputs (``ckpt_…``, ``data_…``), its message to the queue and its first event."""
    fusion = Fusion(
        id=new_fusion_id(),
        tenant=owner.tenant,
        owner=owner.account,
        state=FusionState.QUEUED,
        recipe=recipe,
        attempt=0,
        losses=0,
        request_id=origin.request_id,
        traceparent=origin.traceparent,
        artifacts=[],
    )
    session.add(fusion)
    session.flush()
    session.add_all(FusionInput(fusion_id=fusion.id, reference=reference) for reference in sorted(set(inputs)))
    outbox.put(session, fusion.id, queue_of(recipe))
    append(session, fusion.id, 0, EventType.QUEUED, {})
    return fusion


def claim(session: Session, fusion_id: str, worker: str, lease_seconds: float, max_attempts: int) -> Claim | None:
    """Takes a job that is queued, or whose lease ran out; None if it is done or held by a live worker.

    A job that was lost too often is left to the reaper, which fails it.
    """
    before = _locked(session, fusion_id)
    if before is None:
        return None
    now = database_now(session)
    ended = (before.attempt, _silent(before)) if before.state is FusionState.RUNNING else None
    lost = and_(Fusion.state == FusionState.RUNNING, Fusion.lease_until < now, Fusion.losses + 1 < max_attempts)
    row = _move(
        session,
        fusion_id,
        FusionState.RUNNING,
        or_(Fusion.state == FusionState.QUEUED, lost),
        attempt=Fusion.attempt + 1,
        losses=Fusion.losses + case((Fusion.state == FusionState.RUNNING, 1), else_=0),
        worker=worker,
        lease_until=now + timedelta(seconds=lease_seconds),
        started_at=func.coalesce(Fusion.started_at, now),
        progress=None,
    )
    if row is None:
        return None
    outbox.drop(session, fusion_id)
    if ended is not None:
        attempt, seen = ended
        append(session, fusion_id, attempt, EventType.REQUEUED, {"seen": seen, "lost": True})
    append(session, fusion_id, row.attempt, EventType.STARTED, {"worker": worker})
    deliveries.announce(session, fusion_id, EventType.STARTED)
    origin = Origin(before.request_id, before.traceparent)
    return Claim(FusionId(fusion_id), row.attempt, worker, row.recipe, origin)


def heartbeat(session: Session, held: Claim, lease_seconds: float) -> bool:
    """Extends the lease; False if the job is no longer this worker's."""
    until = database_now(session) + timedelta(seconds=lease_seconds)
    return _touch(session, held, lease_until=until)


def standing(session: Session, held: Claim) -> FusionState | None:
    """``RUNNING`` or ``CANCELLING``; None if the job is no longer this worker's."""
    return session.scalars(select(Fusion.state).where(*_fence(held))).one_or_none()


def settle(session: Session, held: Claim, recipe: dict[str, Any]) -> bool:
    """Writes down what the first attempt chose where the recipe left it open; False if the lease is lost."""
    return _touch(session, held, recipe=recipe)


def report(
    session: Session, held: Claim, progress: dict[str, Any], events: Sequence[tuple[EventType, Mapping[str, Any]]]
) -> bool:
    """Writes how far the attempt is and what happened in it; False, and nothing written, if the lease is lost."""
    if not _touch(session, held, progress=progress):
        return False
    for kind, data in events:
        append(session, held.fusion_id, held.attempt, kind, data)
    return True


def finish_succeeded(session: Session, held: Claim, verdict: dict[str, Any], artifacts: Sequence[ArtifactFile]) -> bool:
    """Publishes the result; False, and nothing published, if the lease is lost or a cancel came first."""
    if not _end(session, held.fusion_id, held.attempt, FusionState.SUCCEEDED, verdict=verdict):
        return False
    for blob in sorted({file.blob for file in artifacts}, key=lambda blob: blob.digest):  # the order of announcements
        record_blob(session, blob)
    session.add_all(
        Artifact(fusion_id=held.fusion_id, path=file.path, digest=file.blob.digest, size=file.blob.size)
        for file in artifacts
    )
    return True


def finish_failed(session: Session, held: Claim, error: dict[str, Any]) -> bool:
    """Records why it failed; False if the lease is lost or a cancel came first."""
    return _end(session, held.fusion_id, held.attempt, FusionState.FAILED, data={"error": error}, error=error)


def finish_cancelled(session: Session, held: Claim) -> bool:
    """The worker has stopped as it was asked to; False if nobody asked or the lease is lost."""
    asked = Fusion.state == FusionState.CANCELLING
    return _end(session, held.fusion_id, held.attempt, FusionState.CANCELLED, asked)


def release(session: Session, held: Claim, seen: str) -> bool:
    """Gives a job back unfinished, because its worker stops; another takes it up at once. Not counted as a loss."""
    if finish_cancelled(session, held):
        return True
    return _requeue(session, held.fusion_id, held.attempt, seen, losses=0)


def request_cancel(session: Session, fusion_id: str) -> FusionState | None:
    """Cancels a queued job at once and asks a running one to stop; the state it is in now, None if there is none.

    Asking again, or asking for a job that has ended, changes nothing.
    """
    fusion = _locked(session, fusion_id)
    if fusion is None:
        return None
    if fusion.state == FusionState.QUEUED:
        _end(session, fusion.id, fusion.attempt, FusionState.CANCELLED)
        outbox.drop(session, fusion_id)
    elif fusion.state == FusionState.RUNNING:
        _move(session, fusion_id, FusionState.CANCELLING)
        append(session, fusion_id, fusion.attempt, EventType.CANCELLING, {})
    session.refresh(fusion)
    return fusion.state


def abandon(session: Session, fusion_id: str, worker: str, seen: str, max_attempts: int) -> None:
    """What the parent of a dead process does at once for the job the dead one held; others' jobs stay untouched."""
    fusion = _locked(session, fusion_id)
    if fusion is not None and fusion.state in HELD and _is_of(fusion.worker or "", worker):
        _lose(session, fusion, seen, max_attempts)


def give_up(session: Session, held: Claim, seen: str, max_attempts: int) -> bool:
    """What a process does that has to end in the middle of its job; False if the job is no longer its own."""
    fusion = _locked(session, held.fusion_id)
    if fusion is None or fusion.state not in HELD or fusion.attempt != held.attempt:
        return False
    _lose(session, fusion, seen, max_attempts)
    return True


def held_by(session: Session, worker: str) -> list[FusionId]:
    """The jobs whose lease this worker holds, or one of its processes (``worker/…``)."""
    own = or_(Fusion.worker == worker, Fusion.worker.startswith(f"{worker}/", autoescape=True))
    return [FusionId(fusion_id) for fusion_id in session.scalars(select(Fusion.id).where(Fusion.state.in_(HELD), own))]


def _is_of(holder: str, worker: str) -> bool:
    return holder == worker or holder.startswith(f"{worker}/")


def requeue_expired(session: Session, max_attempts: int, limit: int = 100) -> list[FusionId]:
    """Takes every job back whose lease ran out: requeued, failed after too many losses, or cancelled if asked for."""
    expired = (
        select(Fusion)
        .where(Fusion.state.in_(HELD), Fusion.lease_until < database_now(session))
        .order_by(Fusion.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    lost = session.scalars(expired).all()
    for fusion in lost:
        _lose(session, fusion, _silent(fusion), max_attempts)
    return [FusionId(fusion.id) for fusion in lost]


def _silent(fusion: Fusion) -> str:
    return f"worker {fusion.worker} fell silent: killed, out of memory or cut off"


def _lose(session: Session, fusion: Fusion, seen: str, max_attempts: int) -> None:
    if fusion.state == FusionState.CANCELLING:
        _end(session, fusion.id, fusion.attempt, FusionState.CANCELLED)
    elif fusion.losses + 1 < max_attempts:
        _requeue(session, fusion.id, fusion.attempt, seen, losses=1)
    else:
        error = _exhausted(session, fusion, seen)
        values = {"error": error, "losses": fusion.losses + 1}
        _end(session, fusion.id, fusion.attempt, FusionState.FAILED, data={"error": error, "lost": True}, **values)


def _exhausted(session: Session, fusion: Fusion, seen: str) -> dict[str, Any]:
    requeued = select(Event).where(Event.fusion_id == fusion.id, Event.type == EventType.REQUEUED.value)
    earlier = [(event.attempt, event.data["seen"]) for event in session.scalars(requeued.order_by(Event.id))]
    return {
        "code": "fusion.attempts_exhausted",
        "detail": f"Its worker was lost {fusion.losses + 1} times; it is not tried again. Last seen: {seen}.",
        "errors": [
            {"location": f"attempt {attempt}", "code": "attempt.ended", "message": message}
            for attempt, message in [*earlier, (fusion.attempt, seen)]
        ],
    }


def _requeue(session: Session, fusion_id: str, attempt: int, seen: str, losses: int) -> bool:
    row = _move(
        session,
        fusion_id,
        FusionState.QUEUED,
        Fusion.attempt == attempt,
        losses=Fusion.losses + losses,
        worker=None,
        lease_until=None,
    )
    if row is None:
        return False
    outbox.put(session, fusion_id, queue_of(row.recipe))
    append(session, fusion_id, attempt, EventType.REQUEUED, {"seen": seen, "lost": losses > 0})
    return True


def _locked(session: Session, fusion_id: str) -> Fusion | None:
    """The row, held until the transaction ends; SQLite's writers hold the whole database anyway."""
    return session.get(Fusion, fusion_id, with_for_update=True, populate_existing=True)


def _fence(held: Claim) -> tuple[ColumnElement[bool], ...]:
    return Fusion.id == held.fusion_id, Fusion.attempt == held.attempt, Fusion.state.in_(HELD)


def _touch(session: Session, held: Claim, **values: object) -> bool:
    changed = update(Fusion).where(*_fence(held)).values(**values).returning(Fusion.id)
    return session.execute(changed).first() is not None


def _end(
    session: Session,
    fusion_id: str,
    attempt: int,
    target: FusionState,
    *conditions: ColumnElement[bool],
    data: Mapping[str, Any] | None = None,
    **values: object,
) -> bool:
    now = database_now(session)
    fence = Fusion.attempt == attempt
    ending = {"finished_at": now, "worker": None, "lease_until": None, **values}
    if _move(session, fusion_id, target, fence, *conditions, **ending) is None:
        return False
    append(session, fusion_id, attempt, EventType(target.value), data or {})
    deliveries.announce(session, fusion_id, EventType(target.value))
    return True


def _move(
    session: Session, fusion_id: str, target: FusionState, *conditions: ColumnElement[bool], **values: object
) -> Row[int, int, dict[str, Any]] | None:
    """The one statement that changes a state; the row as it is afterwards, None if the move was not allowed."""
    moved = (
        update(Fusion)
        .where(Fusion.id == fusion_id, Fusion.state.in_(sources_of(target)), *conditions)
        .values(state=target, **values)
        .returning(Fusion.attempt, Fusion.losses, Fusion.recipe)
    )
    return session.execute(moved, execution_options={"synchronize_session": "fetch"}).first()
