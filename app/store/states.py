"""The states of a fusion and the only moves between them."""

from __future__ import annotations

from enum import StrEnum


class FusionState(StrEnum):
    """Where a fusion stands; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({FusionState.SUCCEEDED, FusionState.FAILED, FusionState.CANCELLED})
HELD = frozenset({FusionState.RUNNING, FusionState.CANCELLING})  # a worker holds the lease

MOVES: frozenset[tuple[FusionState, FusionState]] = frozenset(
    {
        (FusionState.QUEUED, FusionState.RUNNING),  # a worker claims
        (FusionState.QUEUED, FusionState.CANCELLED),  # cancelled before anyone claimed
        (FusionState.RUNNING, FusionState.RUNNING),  # a worker claims a job whose lease ran out
        (FusionState.RUNNING, FusionState.QUEUED),  # lease released, or run out and requeued
        (FusionState.RUNNING, FusionState.CANCELLING),  # cancel asked for
        (FusionState.RUNNING, FusionState.SUCCEEDED),
        (FusionState.RUNNING, FusionState.FAILED),
        (FusionState.CANCELLING, FusionState.CANCELLED),  # the worker stopped, or its lease ran out
    }
)


def sources_of(target: FusionState) -> tuple[FusionState, ...]:
    """The states from which ``target`` may be entered: the guard of every UPDATE that moves a fusion."""
    return tuple(sorted(source for source, to in MOVES if to == target))
