"""One chunk on its way from the wire to the staged file."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from app.store.blobs import CHUNK
from app.store.staging import Appender
from app.uploads.threads import in_long_thread, in_thread
from app.uploads.tus.errors import ChecksumMismatch, ChunkTooLarge
from app.uploads.tus.protocol import Checksum

T = TypeVar("T")

# What a killed process may lose of a chunk: as much as came since the last sync. Each costs a wait for the disk.
_SPAN_BYTES = 64 << 20
_SPAN_SECONDS = 5.0


class Chunk:
    """What came of one request's body: gathered here, written by threads, kept as it goes on unless it is to be checked.

    Before more is written after each span, ``go_on`` says whether it may: it raises where not. It is not asked about a
    chunk that has ended, as what is there needs no more room.

    Where nobody could come back for what is kept, ``give_up`` removes it all when the chunk does not come to its end.
    """

    def __init__(
        self,
        target: Appender,
        room: int,
        checksum: Checksum | None,
        go_on: Callable[[], None],
        give_up: Callable[[], None] | None = None,
    ) -> None:
        self._target = target
        self._room = room
        self._checksum = checksum
        self._digest = checksum.begun() if checksum else None
        self._go_on = go_on
        self._give_up = give_up
        self._gathered = bytearray()
        self._is_to_ask = False
        self._span_from = target.written
        self._span_since = time.monotonic()

    async def receive(self, body: AsyncIterator[bytes], conclude: Callable[[], T]) -> T:
        """Appends what comes, a megabyte while the next one comes; ``conclude`` runs in the end, in a thread.

        Whatever breaks it off, a sender that is gone or too slow, a full disk, the end of this process: what had come is
        kept, unless it was to be checked and no longer can be. The upload is held until then, and let go in every case.
        """
        writing: asyncio.Future[None] | None = None
        try:
            async for piece in body:
                self._take(piece)
                if self._is_due():
                    if writing is not None:
                        await writing
                    gathered, self._gathered = self._gathered, bytearray()
                    writing = in_thread(self._write, gathered)
            if writing is not None:
                await writing
        except asyncio.CancelledError:  # who is cancelled can't wait; the thread ends by itself
            in_thread(self._break_off, False)
            raise
        except BaseException:
            await in_thread(self._break_off, writing is None or await _succeeded(writing))
            raise
        return await in_long_thread(self._end, conclude)

    def _take(self, piece: bytes) -> None:
        self._room -= len(piece)
        if self._room < 0:
            raise ChunkTooLarge(
                "The body goes on beyond the length that was announced in Upload-Length. Of an upload that was begun "
                "before, HEAD tells what is kept."
            )
        self._gathered += piece

    def _is_due(self) -> bool:
        """A thread is asked once a megabyte; for slow senders, every few seconds, so that little can be lost."""
        return len(self._gathered) >= CHUNK or (
            len(self._gathered) > 0 and time.monotonic() - self._span_since > _SPAN_SECONDS
        )

    def _write(self, gathered: bytearray) -> None:
        if self._is_to_ask:
            self._go_on()
            self._is_to_ask = False
        self._append(gathered)
        now = time.monotonic()
        if self._target.written - self._span_from >= _SPAN_BYTES or now - self._span_since > _SPAN_SECONDS:
            if self._checksum is None:
                self._target.keep()
            self._is_to_ask, self._span_from, self._span_since = True, self._target.written, now

    def _append(self, gathered: bytearray) -> None:
        if self._digest is not None:
            self._digest.update(gathered)
        self._target.write(gathered)

    def _break_off(self, gapless: bool) -> None:
        """Keeps what can be kept; what was gathered last only where all before it is known to be written."""
        if self._give_up is not None:
            self._give_up()
            return
        try:
            if self._checksum is None and gapless:
                self._target.write(self._gathered)
        finally:
            self._target.release(keep=self._checksum is None)

    def _end(self, conclude: Callable[[], T]) -> T:
        try:
            self._append(self._gathered)
            self._check()
            self._target.keep()
            return conclude()
        except BaseException:
            if self._give_up is not None:
                self._give_up()
            raise
        finally:
            self._target.release(keep=self._checksum is None)

    def _check(self) -> None:
        if self._checksum is None or self._digest is None:
            return
        if not hmac.compare_digest(self._digest.digest(), self._checksum.digest):
            self._target.drop()
            raise ChecksumMismatch(
                f"The chunk's {self._checksum.algorithm} is {self._digest.hexdigest()}, Upload-Checksum announces "
                f"{self._checksum.digest.hex()}; nothing of it was kept. Send it again."
            )


async def _succeeded(writing: asyncio.Future[None]) -> bool:
    await asyncio.wait([writing])
    return writing.exception() is None
