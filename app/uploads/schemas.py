"""What an upload answers, and how bytes are referred to that are here already."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints

PREFIX = "sha256:"
BlobReference = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
HeldFiles = Annotated[dict[str, BlobReference], Field(min_length=1)]


class UploadedFileOut(BaseModel):
    """A file that was stored."""

    path: str
    size: int = Field(description="bytes")
    sha256: str = Field(description="of the bytes, in hex")
