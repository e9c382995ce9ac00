"""Questions and answers on a pipe: four bytes of length, then JSON."""

from __future__ import annotations

import json
import struct
from typing import IO, Any

MOST_BYTES = 16 * 2**20  # a page of 1000 tensors with the longest names is far below
PREFIX = struct.Struct("<I")


def encoded(document: Any) -> bytes:
    """The frame of a document."""
    body = json.dumps(document).encode()
    return PREFIX.pack(len(body)) + body


def read_frame(file: IO[bytes]) -> Any | None:
    """The next document; None at the end of the file."""
    start = file.read(PREFIX.size)
    if len(start) < PREFIX.size:
        return None
    (size,) = PREFIX.unpack(start)
    return json.loads(file.read(size))
