"""One blob as an answer: entity tag, ranges, digests; streamed in pieces that a thread reads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.fusions.preconditions import chosen_range, none_match
from app.store.blobs import CHUNK
from app.uploads.digests import repr_digest

_MEDIA_TYPES = {
    ".json": "application/json",
    ".yaml": "application/yaml",
    ".parquet": "application/vnd.apache.parquet",
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
}


def blob_response(request: Request, file: Path, path: str, digest: str, size: int) -> Response:
    """The file, a part of it, or 304, as the request's headers ask."""
    tag = f'"{digest}"'
    headers = {
        "ETag": tag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": repr_digest(digest),
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
    return StreamingResponse(_pieces(file, begin, end), status, headers, media_type)


async def _pieces(file: Path, begin: int, end: int) -> AsyncIterator[bytes]:
    async with await anyio.open_file(file, "rb", buffering=0) as opened:
        await opened.seek(begin)
        while begin < end:
            piece = await opened.read(min(CHUNK, end - begin))
            if not piece:
                raise OSError(f"{file} is shorter than it was when it was stored")
            begin += len(piece)
            yield piece
