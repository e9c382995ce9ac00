"""Datasets as callers see them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.uploads.names import Name
from app.uploads.schemas import HeldFiles, UploadedFileOut
from cogram_core.preflight import LossKind


class DatasetIn(BaseModel):
    """Make a dataset of the file that was uploaded under ``name``, or of bytes that you have in other things here."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    files: Annotated[list[str], Field(min_length=1, max_length=1)] | None = Field(
        None, description="the path of the uploaded file; may be left out where only one was uploaded"
    )
    blobs: Annotated[HeldFiles, Field(max_length=1)] | None = Field(
        None, description="instead of files: its path to sha256:HEX, for bytes that HEAD /v1/blobs/sha256:HEX finds"
    )


class DatasetOut(BaseModel):
    """Examples with their classes, values or token labels."""

    id: str
    name: str
    sha256: str = Field(description="of the file")
    examples: int
    input_shape: list[int] = Field(description="of one example")
    target_min: int | None = Field(description="of classes or token labels; null for values")
    target_max: int | None
    loss: LossKind = Field(description="what the targets ask for: classes, values or the labels of a language model")
    target_shape: list[int] = Field(description="of one example")
    token_min: int | None = Field(description="of input_ids; null for other inputs")
    token_max: int | None
    files: list[UploadedFileOut]
    created_at: AwareDatetime


class DatasetPage(BaseModel):
    """Some of the datasets, newest first."""

    items: list[DatasetOut]
    next_page_token: str | None
