"""One blob as an answer: entity tag, ranges, digests; streamed in pieces."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from app.fusions.preconditions import chosen_range, none_match, require_match
from app.store.blobs import Storage, StoredBlob
from app.uploads.digests import repr_digest

_PLAIN = "application/octet-stream"
_BY_SUFFIX = {
    ".json": "application/json",
    ".yaml": "application/yaml",
    ".parquet": "application/vnd.apache.parquet",
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
}
MEDIA_TYPES = (_PLAIN, *_BY_SUFFIX.values())


def blob_response(request: Request, storage: Storage, path: str, blob: StoredBlob) -> Response:
    """The file, a part of it, or 304, as the request's headers ask.

    Raises:
        ArtifactIsAnother: when If-Match names other bytes.
        RangeOutside: when the file has not the bytes that Range asks for.
    """
    size, tag = blob.size, f'"{blob.digest}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": repr_digest(blob.digest),
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(PurePosixPath(path).name)}",
        "X-Content-Type-Options": "nosniff",
        "X-Accel-Buffering": "no",  # a proxy that buffers takes much, and then nothing until its own client took that
    }
    media_type = _BY_SUFFIX.get(PurePosixPath(path).suffix, _PLAIN)
    require_match(request.headers.get("If-Match"), tag)
    if not none_match(request.headers.get("If-None-Match"), tag):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        headers["Content-Length"] = str(size)  # a Range means nothing here
        return Response(headers=headers, media_type=media_type)
    part = chosen_range(request.headers.get("Range"), request.headers.get("If-Range"), tag, size)
    begin, end = part or (0, size)
    if part:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - begin)
    return BlobResponse(storage.stream(blob, begin, end), 206 if part else 200, headers, media_type)


class BlobResponse(StreamingResponse):
    """Begins its answer once the first piece is there: a storage that is out of reach is told, not cut off."""

    async def stream_response(self, send: Send) -> None:
        """Head, first piece, and all others."""
        pieces = aiter(self.body_iterator)
        first = await anext(pieces, b"")
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": first, "more_body": True})
        async for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
