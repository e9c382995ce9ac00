"""Starts the processes that read traces, few at a time, and hands on what they write.

They are processes of their own, as pyarrow would double the API's memory and never give it back.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.fusions.errors import TracesBusy, TraceUnreadable
from app.fusions.trace_query import TraceQuery
from app.settings import Settings

_AT_ONCE = 2
_QUEUE_SECONDS = 60.0
_SILENCE_SECONDS = 60.0  # neither the reader writes nor the client takes
_CHUNK = 1 << 16
_SMALL = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
_log = structlog.get_logger("app.traces")


class TraceReaders:
    """The readers of one API process; belongs to its event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._ending: set[asyncio.Task[Any]] = set()

    async def read(self, query: TraceQuery, request: Request, done: Callable[[], None]) -> TraceReading:
        """A reader that has begun to answer; ``request`` tells when nobody waits for it any more.

        ``done`` is called once the trace is read no longer, however that came.

        Raises:
            TracesBusy: when no slot became free.
            TraceUnreadable: when the reader ended before its first line.
        """
        try:
            reading = await self._begin(query, done)
        except BaseException:
            done()
            raise
        try:
            await _unless_gone(reading, request)
        except BaseException:
            self.end(reading)
            raise
        return reading

    async def _begin(self, query: TraceQuery, done: Callable[[], None]) -> TraceReading:
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            raise TracesBusy(
                f"{_AT_ONCE} traces are being read, and more waiting. Ask again later.", headers={"Retry-After": "10"}
            ) from None
        try:
            process = await _start(query)
        except BaseException:
            self._slots.release()
            raise

        def end() -> None:
            self._slots.release()
            done()

        return TraceReading(process, end, Pace(self._settings))

    def end(self, reading: TraceReading) -> None:
        """Ends the reader if it still runs; what it had written is read away, so that its pipes close."""
        reading.stop()
        task = asyncio.create_task(reading.process.communicate())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


class TraceReading:
    """One reader at work. It is killed when it has been silent for too long, or whoever reads from it is too slow."""

    def __init__(self, process: Process, on_end: Callable[[], None], pace: Pace) -> None:
        self.process = process
        self.following: int | None = None
        self._on_end = on_end
        self._pace = pace
        self._stopped = False
        self._alarm = asyncio.get_running_loop().call_later(_SILENCE_SECONDS, self.stop)

    async def begin(self) -> None:
        """Waits for the first line."""
        line = await self._output.readline()
        if not line.endswith(b"\n"):
            await self._fail()
        self.following = json.loads(line)["next"]

    async def pieces(self) -> AsyncIterator[bytes]:
        """All that follows the first line.

        Raises:
            TakenTooSlowly: when the reader has been kept waiting.
            TraceUnreadable: at the end, if the reader did not end well.
        """
        while piece := await self._output.read(_CHUNK):
            self._still_alive()
            began = time.monotonic()
            yield piece
            self._pace.note(len(piece), time.monotonic() - began)
            if self._stopped:
                raise TakenTooSlowly  # the reader was killed while it was kept waiting
            self._still_alive()
        if await self.process.wait():
            await self._fail()

    async def whole(self) -> bytes:
        """All that follows the first line, at once."""
        return b"".join([piece async for piece in self.pieces()])

    def stop(self) -> None:
        """Kills the reader, if it still runs, and makes room for the next."""
        if self._stopped:
            return
        self._stopped = True
        self._alarm.cancel()
        if self.process.returncode is None:
            self.process.kill()
        self._on_end()

    @property
    def _output(self) -> asyncio.StreamReader:
        assert self.process.stdout is not None
        return self.process.stdout

    def _still_alive(self) -> None:
        if not self._stopped:
            self._alarm.cancel()
            self._alarm = asyncio.get_running_loop().call_later(_SILENCE_SECONDS, self.stop)

    async def _fail(self) -> None:
        assert self.process.stderr is not None
        said = (await self.process.stderr.read()).decode(errors="replace")
        code = await self.process.wait()
        if self._stopped:
            _log.info("trace.reader_stopped")  # nobody waited for it any more
        else:
            _log.error("trace.reader_failed", code=code, said=said[-4000:])
        raise TraceUnreadable.with_code(code)


class TakenTooSlowly(ClientDisconnect):
    """Half of the answer is out, so there is no way to tell but to close the connection."""


class Pace:
    """How slowly an answer may be taken: only the time that its taker needs counts, in spans that have a minimum each."""

    def __init__(self, settings: Settings) -> None:
        self._span = settings.body_idle_seconds
        self._least = self._span * settings.trace_min_bytes_per_second
        self._waited, self._taken = 0.0, 0

    def note(self, taken: int, waited: float) -> None:
        """So many bytes were taken in so many seconds; raises TakenTooSlowly at the end of a span with too few."""
        self._waited, self._taken = self._waited + waited, self._taken + taken
        if self._waited < self._span:
            return
        if self._taken < self._least:
            _log.info("trace.taken_too_slowly", taken_bytes=self._taken, seconds=round(self._waited, 1))
            raise TakenTooSlowly
        self._waited, self._taken = 0.0, 0


class ReadingResponse(StreamingResponse):
    """Streams a reading; the reader never outlives the answer."""

    def __init__(self, readers: TraceReaders, reading: TraceReading, media_type: str, headers: dict[str, str]) -> None:
        super().__init__(reading.pieces(), media_type=media_type, headers=headers)
        self._readers = readers
        self._reading = reading

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it, and ends the reader however that went."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._readers.end(self._reading)


async def _start(query: TraceQuery) -> Process:
    command = (sys.executable, "-m", "app.fusions.trace_reader", query.as_json())
    return await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=os.environ | _SMALL, limit=_CHUNK
    )


async def _unless_gone(reading: TraceReading, request: Request) -> None:
    """Waits for the first line, but kills the reader when the client goes away before it."""
    gone = asyncio.create_task(_gone(request))
    gone.add_done_callback(lambda task: None if task.cancelled() else reading.stop())
    try:
        await reading.begin()
    finally:
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
