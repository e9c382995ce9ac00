"""The headers of tus in OpenAPI: they are read by hand, so that everything wrong with them is told at once."""

from __future__ import annotations

from typing import Any

from app.uploads.tus.protocol import ALGORITHMS, CHUNK_TYPE, VERSION

_NUMBER = {"type": "integer", "minimum": 0}
_TEXT = {"type": "string"}


def described(status: int, headers: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """An answer without a body, and what its headers say."""
    descriptions = {200: "As it stands", 201: "Begun", 204: "Done"}
    return {status: {"description": descriptions[status], "headers": headers}}


def _parameter(name: str, description: str, schema: dict[str, Any], required: bool = False) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "required": required, "schema": schema}


def _answer(description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": description, "schema": schema or _TEXT}


_VERSION = _parameter("Tus-Resumable", "the version of tus", {"type": "string", "enum": [VERSION]}, required=True)
_CHECKSUM = _parameter(
    "Upload-Checksum",
    f"of the bytes in this request: one of {', '.join(ALGORITHMS)}, a space, the digest in base64",
    {"type": "string", "pattern": "^(sha256 [A-Za-z0-9+/]{43}=|sha1 [A-Za-z0-9+/]{27}=)$"},
)
_LENGTH = _parameter("Upload-Length", "bytes of the whole file", _NUMBER, required=True)
_OFFSET = _parameter("Upload-Offset", "where the bytes of this request begin", _NUMBER, required=True)
_METADATA = _parameter(
    "Upload-Metadata",
    "comma-separated KEY BASE64: kind (checkpoint or dataset), name, path (or filename), and sha256 if known",
    _TEXT,
    required=True,
)
_CHUNK = {"content": {CHUNK_TYPE: {"schema": {"type": "string", "format": "binary"}}}}

POST = {"parameters": [_VERSION, _LENGTH, _METADATA, _CHECKSUM], "requestBody": {"required": False, **_CHUNK}}
PATCH = {"parameters": [_VERSION, _OFFSET, _CHECKSUM], "requestBody": {"required": True, **_CHUNK}}
HEAD = {"parameters": [_VERSION]}
DELETE = {"parameters": [_VERSION]}

_PROGRESS = {
    "Tus-Resumable": _answer("the version of tus"),
    "Upload-Offset": _answer("bytes that are kept, whatever happens", _NUMBER),
    "Upload-Expires": _answer("when the upload is given up if nothing more comes"),
    "Repr-Digest": _answer("sha256 of the whole, once it is there"),
}
POST_ANSWER = {"Location": _answer("the upload's own address"), **_PROGRESS}
PATCH_ANSWER = _PROGRESS
HEAD_ANSWER = {
    **_PROGRESS,
    "Upload-Length": _answer("bytes of the whole", _NUMBER),
    "Upload-Metadata": _answer("as it was sent"),
}
OPTIONS_ANSWER = {
    "Tus-Version": _answer("versions that are spoken"),
    "Tus-Extension": _answer("extensions that are spoken"),
    "Tus-Checksum-Algorithm": _answer("algorithms for Upload-Checksum"),
    "Tus-Max-Size": _answer("bytes of the largest file", _NUMBER),
}
