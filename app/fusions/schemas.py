"""Fusions as callers see them."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, BaseModel, Field

from app.errors import ProblemEntry
from app.store.states import FusionState


class FusionError(BaseModel):
    """Why a fusion failed."""

    code: str
    detail: str
    errors: list[ProblemEntry] = []


class Links(BaseModel):
    """Where to go on."""

    self: str
    events: str
    cancel: str
    trace: str
    artifacts: str


class FusionOut(BaseModel):
    """One fusion job."""

    id: str
    state: FusionState
    attempt: int = Field(description="how many workers have begun it")
    retry_of: str | None = Field(None, description="the fusion that failed or was cancelled, and that this one repeats")
    recipe: dict[str, Any] = Field(description="with all defaults filled in and references resolved to ids")
    waiting_for: str | None = Field(
        None, description="in words, if it is queued and may wait for ever: no worker serves its queue; and what to do"
    )
    progress: dict[str, Any] | None
    verdict: dict[str, Any] | None
    error: FusionError | None
    created_at: AwareDatetime
    started_at: AwareDatetime | None = Field(description="of the first attempt")
    finished_at: AwareDatetime | None
    links: Links


class FusionPage(BaseModel):
    """Some of the fusions, newest first."""

    items: list[FusionOut]
    next_page_token: str | None


class Estimates(BaseModel):
    """What a run will take, as far as headers tell."""

    memory_bytes: int
    disk_bytes: int


class ValidationOut(BaseModel):
    """What would happen to a recipe."""

    ok: bool
    errors: list[ProblemEntry]
    estimates: Estimates | None


class ArtifactOut(BaseModel):
    """A file that the fusion produced."""

    path: str
    size: int
    sha256: str
    link: str


class ArtifactList(BaseModel):
    """All files that the fusion produced."""

    items: list[ArtifactOut]


class SourceShare(BaseModel):
    """How much of a source went into a layer, on average over accepted decisions."""

    source: str
    mean_share: float


class LayerSummary(BaseModel):
    """What happened to one layer."""

    layer: str
    visits: int = Field(description="decisions about the layer or a part of it")
    accepted: int
    trained: int = Field(description="tensors that a phase of training left with new values")
    rolled_back: int
    skipped: int
    shares: list[SourceShare]
    loss_gained: float = Field(description="by how much accepted decisions lowered the loss, in nats, summed")


class TraceSummary(BaseModel):
    """The trace, layer by layer, in the order in which they were first visited."""

    layers: list[LayerSummary]
