"""How slowly a body may come. A sender that brings nothing for long holds a connection, and an upload, for nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from app.settings import Settings
from app.uploads.errors import BodyTooSlow

_CLOSING = {"Connection": "close"}  # the rest of the body, if it comes at all, would come as slowly


async def paced(body: AsyncIterator[bytes], settings: Settings) -> AsyncIterator[bytes]:
    """The pieces of ``body``, for as long as they come quickly enough.

    Only the time spent waiting for the sender counts, never that of our own disk. It is looked at in spans of
    ``COGRAM_BODY_IDLE_SECONDS``: each has to bring its minimum.

    Raises:
        BodyTooSlow: when nothing came for a span, or too little during one.
    """
    span = settings.body_idle_seconds
    least = span * settings.body_min_bytes_per_second
    waited, received = 0.0, 0
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(span):
                piece = await anext(body, None)
        except TimeoutError as error:
            raise BodyTooSlow(
                f"Nothing came for {span:g} seconds (COGRAM_BODY_IDLE_SECONDS). Send the rest, or the whole, again.",
                headers=_CLOSING,
            ) from error
        if piece is None:
            return
        waited, received = waited + time.monotonic() - began, received + len(piece)
        if waited >= span:
            if received < least:
                raise BodyTooSlow(
                    f"{received} bytes came in {waited:.0f} seconds; at least {settings.body_min_bytes_per_second} a "
                    "second are wanted (COGRAM_BODY_MIN_BYTES_PER_SECOND).",
                    headers=_CLOSING,
                )
            waited, received = 0.0, 0
        yield piece
