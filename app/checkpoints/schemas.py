"""Checkpoints as callers see them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.uploads.names import Name
from app.uploads.schemas import HeldFiles, UploadedFileOut


class CheckpointIn(BaseModel):
    """Make a checkpoint of files that were uploaded under ``name``, and of bytes that you have in other things here."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    files: Annotated[list[str], Field(min_length=1, max_length=10_000)] | None = Field(
        None, description="paths of uploaded files; all that were uploaded under the name, if both are left out"
    )
    blobs: Annotated[HeldFiles, Field(max_length=10_000)] | None = Field(
        None, description="further files: path to sha256:HEX, for bytes that HEAD /v1/blobs/sha256:HEX finds"
    )


class CheckpointOut(BaseModel):
    """The tensors of one trained network."""

    id: str
    name: str
    sha256: str = Field(description="over the lines 'sha256  path' of its files, sorted by path")
    tensors: int
    parameters: int = Field(description="numbers in floating point tensors")
    dtypes: list[str]
    network_kind: str | None = Field(description="how it can be run forward, where its files tell")
    files: list[UploadedFileOut]
    created_at: AwareDatetime


class CheckpointPage(BaseModel):
    """Some of the checkpoints, newest first."""

    items: list[CheckpointOut]
    next_page_token: str | None


class TensorOut(BaseModel):
    """One tensor of a checkpoint."""

    name: str
    dtype: str
    shape: list[int]
    file: str


class TensorPage(BaseModel):
    """Some of the tensors, by name."""

    items: list[TensorOut]
    next_page_token: str | None
