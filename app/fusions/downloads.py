"""One blob as an answer: entity tag, ranges, digests; streamed in pieces."""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.fusions.preconditions import chosen_range, none_match
from app.store.blobs import Storage, StoredBlob
from app.uploads.digests import repr_digest

_MEDIA_TYPES = {
    ".json": "application/json",
    ".yaml": "application/yaml",
    ".parquet": "application/vnd.apache.parquet",
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
}


def blob_response(request: Request, storage: Storage, path: str, blob: StoredBlob) -> Response:
    """The file, a part of it, or 304, as the request's headers ask."""
    size, tag = blob.size, f'"{blob.digest}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": repr_digest(blob.digest),
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(PurePosixPath(path).name)}",
        "X-Content-Type-Options": "nosniff",
    }
    if not none_match(request.headers.get("If-None-Match"), tag):
        return Response(status_code=304, headers=headers)
    part = chosen_range(request.headers.get("Range"), request.headers.get("If-Range"), tag, size)
    begin, end = part or (0, size)
    if part:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - begin)
    media_type = _MEDIA_TYPES.get(PurePosixPath(path).suffix, "application/octet-stream")
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(storage.stream(blob, begin, end), status, headers, media_type)
