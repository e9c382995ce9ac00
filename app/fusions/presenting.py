"""A fusion's row as the resource that callers see, and its entity tag."""

from __future__ import annotations

import hashlib

from app.fusions.schemas import FusionError, FusionOut, Links
from app.store.models import Fusion

RETRY_AFTER = {"Retry-After": "2"}  # seconds; for those who poll, and neither follow events nor wait


def fusion_out(fusion: Fusion) -> FusionOut:
    """The resource."""
    here = f"/v1/fusions/{fusion.id}"
    return FusionOut(
        id=fusion.id,
        state=fusion.state,
        attempt=fusion.attempt,
        retry_of=fusion.retry_of,
        recipe=fusion.recipe,
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


def etag_of(resource: FusionOut) -> str:
    """A strong tag: two equal resources have equal tags."""
    return f'"{hashlib.sha256(resource.model_dump_json().encode()).hexdigest()[:32]}"'
