"""A fusion's row as the resource that callers see, in JSON with its entity tag where many ask for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

from app.fusions.schemas import FusionError, FusionOut, Links
from app.store.models import Fusion
from app.store.states import FusionState

RETRY_AFTER = {"Retry-After": "2"}  # seconds; for those who poll, and neither follow events nor wait


def fusion_out(fusion: Fusion, waiting_for: str | None = None) -> FusionOut:
    """The resource; one that was queued or claimed just now waits for nothing special."""
    here = f"/v1/fusions/{fusion.id}"
    return FusionOut(
        id=fusion.id,
        state=fusion.state,
        attempt=fusion.attempt,
        retry_of=fusion.retry_of,
        recipe=fusion.recipe,
        waiting_for=waiting_for,
        progress=fusion.progress,
        verdict=fusion.verdict,
        error=FusionError.model_validate(fusion.error) if fusion.error else None,
        created_at=fusion.created_at,
        started_at=fusion.started_at,
        finished_at=fusion.finished_at,
        links=Links(
            self=here,
            events=f"{here}/events",
            cancel=f"{here}/cancel",
            trace=f"{here}/trace",
            artifacts=f"{here}/artifacts",
        ),
    )


@dataclass(frozen=True)
class Rendered:
    """A fusion as it goes over the wire, written once for the answer and for its entity tag."""

    state: FusionState
    body: bytes
    tag: str  # strong: two equal resources have equal tags

    @classmethod
    def of(cls, fusion: Fusion, waiting_for: str | None) -> Self:
        """The row's resource, in JSON."""
        body = fusion_out(fusion, waiting_for).model_dump_json().encode()
        return cls(fusion.state, body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
