"""Entity tags and byte ranges (RFC 9110, sections 13 and 14), as far as this service needs them."""

from __future__ import annotations

import re

from app.fusions.errors import ArtifactIsAnother, RangeOutside

_TAG = re.compile(r'(?:W/)?("[^"]*")')
_RANGE = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", re.IGNORECASE)


def require_match(header: str | None, tag: str) -> None:
    """Nothing, if the caller's If-Match holds ``tag`` or is not there.

    Raises:
        ArtifactIsAnother: otherwise. The comparison is the strong one.
    """
    if header is None or header.strip() == "*":
        return
    strong = {found[0] for found in _TAG.finditer(header)}  # with W/ before the quotes it is another text
    if tag not in strong:
        raise ArtifactIsAnother(f"The file's entity tag is {tag}, and If-Match names others only; look at it again.")


def none_match(header: str | None, tag: str) -> bool:
    """True when the caller's If-None-Match doesn't hold ``tag``, so that the whole answer is due."""
    if header is None:
        return True
    if header.strip() == "*":
        return False
    return tag not in _TAG.findall(header)  # the weak comparison, as a GET has it


def chosen_range(header: str | None, if_range: str | None, tag: str, size: int) -> tuple[int, int] | None:
    """The bytes asked for, as begin and end; None for the whole file.

    Several ranges, other units and malformed headers mean the whole file, and so does an If-Range that doesn't hold.

    Raises:
        RangeOutside: when there are no such bytes.
    """
    matched = _RANGE.fullmatch(header.strip()) if header else None
    if matched is None or (if_range is not None and if_range.strip() != tag):
        return None
    first, last = matched[1], matched[2]
    if not first and not last:
        return None
    if not first:
        begin, end = max(size - int(last), 0), size
    else:
        begin, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < begin:
            return None
    if begin >= size or begin == end:
        raise RangeOutside(
            f"The file has {size} bytes; the range asks for others.", headers={"Content-Range": f"bytes */{size}"}
        )
    return begin, end
