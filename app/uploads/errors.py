"""What can be wrong with an upload."""

from __future__ import annotations

from app.errors import (
    BadRequest,
    InsufficientStorage,
    NotFound,
    RequestTimeout,
    TooLarge,
    Unavailable,
    Unprocessable,
    UnsupportedMedia,
)


class UnusablePath(Unprocessable):
    """A name or path that can't be used."""

    code, title = "upload.path", "Unusable name or path"


class PickleRefused(Unprocessable):
    """A file that runs code when it is opened."""

    code, title = "upload.pickle", "Pickle refused"


class DigestMismatch(Unprocessable):
    """The bytes are not those that were announced."""

    code, title = "upload.digest_mismatch", "Digest mismatch"


class DigestUnreadable(Unprocessable):
    """A digest header that can't be read."""

    code, title = "upload.digest_header", "Unreadable digest header"


class BlobNotHeld(NotFound):
    """The tenant has no such bytes."""

    code, title = "blob.not_held", "No such bytes"


class Truncated(BadRequest):
    """The body ended before it was complete."""

    code, title = "upload.truncated", "Truncated upload"


class UploadTooLarge(TooLarge):
    """More bytes than one file may have."""

    code, title = "upload.too_large", "Upload too large"


class NotARawBody(UnsupportedMedia):
    """A form or an encoded body, where the file's own bytes are wanted."""

    code, title = "upload.not_raw", "Not a raw body"


class DiskFull(InsufficientStorage):
    """The disk has no room for the file."""

    code, title = "upload.disk_full", "Insufficient storage"


class StoringTookTooLong(Unavailable):
    """The collector came between the storing of the bytes and their entry."""

    code, title = "upload.collected", "Stored too slowly"


class BodyTooSlow(RequestTimeout):
    """The body stopped coming, or came in drops."""

    code, title = "upload.too_slow", "Upload too slow"
