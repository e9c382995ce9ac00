"""Downloads in OpenAPI: media types, conditions and ranges. The headers are read by hand, as HTTP forgives them much."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_TEXT = {"type": "string"}
_BYTES = {"type": "string", "format": "binary"}
_ABOUT_THE_WHOLE = {
    "ETag": {"description": "strong; of the bytes", "schema": _TEXT},
    "Accept-Ranges": {"description": "bytes", "schema": _TEXT},
    "Repr-Digest": {"description": "sha256 of the whole (RFC 9530)", "schema": _TEXT},
}
_OF_THE_PART = {"Content-Range": {"description": "which bytes of how many", "schema": _TEXT}}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": _TEXT}


IF_NONE_MATCH = _header("If-None-Match", "entity tags that are known already; 304 if it is one of them")
DOWNLOAD = {
    "parameters": [
        _header("If-Match", "entity tags, one of which the file has to have; 412 if it has another"),
        IF_NONE_MATCH,
        _header("Range", "bytes=FIRST-LAST; any other form means the whole"),
        _header("If-Range", "the entity tag that the range is about; the whole, if it is another by now"),
    ]
}


def not_changed(headers: dict[str, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    """The answer to those who have it already."""
    return {304: {"description": "Not changed", "headers": headers or {"ETag": _ABOUT_THE_WHOLE["ETag"]}}}


def downloads(media_types: Iterable[str]) -> dict[int | str, dict[str, Any]]:
    """The answers of a call that hands out a file of one of these types."""
    content = {media_type: {"schema": _BYTES} for media_type in media_types}
    return {
        200: {"description": "The whole file", "content": content, "headers": _ABOUT_THE_WHOLE},
        206: {"description": "A part of the file", "content": content, "headers": _ABOUT_THE_WHOLE | _OF_THE_PART},
        **not_changed(_ABOUT_THE_WHOLE),
    }
