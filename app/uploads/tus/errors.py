"""What can be wrong with a resumable upload. tus 1.0 chose the statuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from app.errors import (
    ApiError,
    BadRequest,
    Conflict,
    Gone,
    Locked,
    NotFound,
    PreconditionFailed,
    TooLarge,
    UnsupportedMedia,
    summary,
)
from cogram_core.errors import Problem


class VersionUnsupported(PreconditionFailed):
    """The client speaks another version of tus, or doesn't say which."""

    code, title = "upload.version", "Unsupported tus version"


class HeadersRefused(BadRequest):
    """Headers that are missing or can't be used; all of them are listed."""

    code, title = "upload.headers", "Unusable headers"

    @classmethod
    def listing(cls, problems: Sequence[Problem]) -> Self:
        """The error with every one of them."""
        return cls(summary(problems), errors=problems)


class UploadNotFound(NotFound):
    """No upload has this id."""

    code, title = "upload.not_found", "No such upload"


class UploadExpired(Gone):
    """Nothing came for so long that the upload was given up."""

    code, title = "upload.expired", "Upload expired"


class OffsetConflict(Conflict):
    """The chunk doesn't begin where the upload ends."""

    code, title = "upload.offset", "Wrong offset"


class UploadLocked(Locked):
    """Another request appends to the upload."""

    code, title = "upload.locked", "Upload locked"


class ChunkTooLarge(TooLarge):
    """More bytes than were announced at the creation."""

    code, title = "upload.too_large", "Upload too large"


class NotAChunk(UnsupportedMedia):
    """A body of another type than tus has for bytes."""

    code, title = "upload.not_a_chunk", "Not a chunk of an upload"


class ChecksumMismatch(ApiError):
    """The chunk is not what its checksum says."""

    status, code, title = 460, "upload.checksum_mismatch", "Checksum mismatch"
