"""What an upload answers."""

from __future__ import annotations

from pydantic import BaseModel, Field


class UploadedFileOut(BaseModel):
    """A file that was stored."""

    path: str
    size: int = Field(description="bytes")
    sha256: str = Field(description="of the bytes, in hex")
