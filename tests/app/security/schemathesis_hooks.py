"""What schemathesis has to be told of this service; loaded by its process, not by the tests'."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("application/offset+octet-stream")
def chunk(_context: schemathesis.SerializationContext, value: Any) -> bytes:
    """The bytes of a resumable upload, as they are."""
    return bytes(value) if isinstance(value, bytes | bytearray) else str(value).encode("utf-8", "surrogatepass")
