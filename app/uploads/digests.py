"""Digest headers, in and out: Repr-Digest and Content-Digest (RFC 9530), and plain hex for simple clients."""

from __future__ import annotations

import base64
import re
from contextlib import suppress

from starlette.datastructures import Headers

from app.uploads.errors import DigestUnreadable

_SHA256_BYTES = 32
_HEX = re.compile(r"[0-9a-fA-F]{64}")
_SHA256_MEMBER = re.compile(r"(?:^|,)\s*sha-256=(?P<item>[^,]*)")


def expected_digests(headers: Headers) -> dict[str, str]:
    """The sha256 that each digest header announces, in hex; other algorithms are not for us."""
    found = {}
    for header in ("Repr-Digest", "Content-Digest"):
        # The dictionary of RFC 9530: commas can't stand in base64, so members part cleanly at them.
        member = _SHA256_MEMBER.search(headers.get(header, ""))
        if member:
            found[header] = _from_base64(header, member["item"].strip())
    plain = headers.get("X-Content-SHA256")
    if plain is not None:
        if not _HEX.fullmatch(plain.strip()):
            raise DigestUnreadable.single("X-Content-SHA256", "write the sha256 as 64 hexadecimal digits")
        found["X-Content-SHA256"] = plain.strip().lower()
    return found


def repr_digest(digest: str) -> str:
    """The value of a Repr-Digest header for a sha256 in hex."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"


def _from_base64(header: str, item: str) -> str:
    raw = b""
    if item.startswith(":") and item.endswith(":"):
        with suppress(ValueError):  # of characters outside of ASCII, too
            raw = base64.b64decode(item[1:-1], validate=True)
    if len(raw) != _SHA256_BYTES:
        raise DigestUnreadable.single(header, "write it as sha-256=:BASE64:, of the 32 bytes of the sha256")
    return raw.hex()
