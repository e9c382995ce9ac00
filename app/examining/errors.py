"""What can keep a question about headers from being answered."""

from __future__ import annotations

from typing import Self

from app.errors import ApiError, Unavailable, Unprocessable
from app.request_scope import current_request_id


class ExaminersBusy(Unavailable):
    """Too many headers are being read, and more waiting."""

    code, title = "examining.busy", "Too many headers at once"


class TooCostly(Unprocessable):
    """The headers are legal as far as they were read, but reading them takes more than this service gives."""

    code, title = "checkpoint.too_costly", "Headers too costly to read"

    @classmethod
    def beyond(cls, limit: str) -> Self:
        """For the limit that was reached, in words."""
        return cls.single(
            "headers",
            f"Reading the headers took more than {limit}; give files with fewer tensors or shorter metadata, or raise "
            "the limit.",
        )

    @classmethod
    def of_memory(cls, limit: int) -> Self:
        """For the limit of memory."""
        return cls.beyond(f"{limit} bytes of memory (COGRAM_EXAMINE_MEMORY_BYTES)")


class ExaminerBroke(ApiError):
    """The process that reads headers failed in a way that nobody foresaw."""

    code, title = "examining.failed", "Headers not readable"

    @classmethod
    def with_log(cls) -> Self:
        """What it was is in the log."""
        return cls(f"The process that reads headers failed. The log has it under request id {current_request_id()}.")
