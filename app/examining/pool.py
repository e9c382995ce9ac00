"""A few warm children that answer questions about headers: reused, replaced when worn, killed when nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog
from starlette.requests import Request

from app.errors import Unavailable
from app.examining.child import Child, Lost
from app.examining.errors import ExaminerBroke, ExaminersBusy, TooCostly
from app.examining.limits import Cost, Limits

_LINGER_SECONDS = 0.5  # so that a caller who leaves a small question costs no child
_log = structlog.get_logger("app.examining")


class Pool:
    """The children of one API process; belongs to its event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.at_once)
        # Large questions leave one child to the small ones, which would else wait behind them.
        self._large_slots = asyncio.Semaphore(max(1, limits.at_once - 1))
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._closed = False

    def warm(self) -> None:
        """Starts the first child, so that the first question finds it ready."""
        self._later(self._refill())

    @property
    def pids(self) -> list[int]:
        """Process ids of all children, idle ones first."""
        return [child.pid for child in (*self._idle, *self._busy)]

    async def ask(self, question: dict[str, Any], request: Request, cost: Cost) -> dict[str, Any]:
        """The answer of a child; ``request`` tells when nobody waits for it any more.

        Raises:
            ExaminersBusy: when no child became free.
            TooCostly: when the question came to a limit, which the error names.
            ExaminerBroke: when the child failed otherwise.
        """
        limits = self._limits.for_bytes(cost.data_bytes)
        async with self._slot(large=cost.is_large):
            answer = await self._unless_gone(self._ask_twice(question, limits), request)
        if "broke" in answer:
            _log.error("examiner.failed", about=question["about"], said=answer["broke"])
            raise ExaminerBroke.with_log()
        return answer

    async def close(self) -> None:
        """Ends all of them."""
        self._closed = True
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(child.bury() for child in (*self._idle, *self._busy)))
        self._idle.clear()

    @asynccontextmanager
    async def _slot(self, *, large: bool) -> AsyncIterator[None]:
        async with AsyncExitStack() as taken:
            try:
                async with asyncio.timeout(self._limits.queue_seconds):
                    for slots in (self._large_slots, self._slots) if large else (self._slots,):
                        await taken.enter_async_context(slots)
            except TimeoutError:
                raise ExaminersBusy(
                    "Headers of many files are being read, and more waiting. Ask again later.",
                    headers={"Retry-After": "5"},
                ) from None
            yield

    async def _ask_twice(self, question: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """A warm child may have died of what came before: then a fresh one is asked, once."""
        try:
            return await self._ask(await self._warm_child(), question, limits)
        except Lost as error:
            _log.warning("examiner.lost", about=question["about"], error=str(error))
        try:
            return await self._ask(await Child.start(self._limits), question, limits)
        except Lost as error:
            _log.error("examiner.lost_again", about=question["about"], error=str(error))
            if error.of_memory:
                raise TooCostly.of_memory(self._limits.memory_bytes) from error
            raise ExaminerBroke.with_log() from error

    async def _ask(self, child: Child, question: dict[str, Any], limits: Limits) -> dict[str, Any]:
        self._busy.add(child)
        try:
            return await child.ask(question, limits)
        finally:
            self._busy.discard(child)
            self._give_back(child)

    async def _warm_child(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.lives:
                return child
            self._later(child.bury())
        return await Child.start(self._limits)

    def _give_back(self, child: Child) -> None:
        if child.lives and self._has_room():
            self._idle.append(child)
            return
        child.kill()  # at once: a cancelled request can't wait for anything
        self._later(child.bury())
        self._later(self._refill())

    async def _refill(self) -> None:
        """A fresh child takes half a second to come up; better before it is asked."""
        if self._idle or not self._has_room():
            return
        child = await Child.start(self._limits)
        if self._has_room():  # a question that came meanwhile has started one of its own
            self._idle.append(child)
        else:
            await child.bury()

    def _has_room(self) -> bool:
        return not self._closed and len(self._idle) + len(self._busy) < self._limits.at_once

    async def _unless_gone(self, asking: Any, request: Request) -> dict[str, Any]:
        task: asyncio.Task[dict[str, Any]] = asyncio.create_task(asking)
        gone = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait((task,), timeout=_LINGER_SECONDS)
            if not task.done():
                _log.info("examiner.stopped")  # nobody waits for it any more
                raise Unavailable("Nobody waited for the answer.")
            return task.result()
        finally:
            gone.cancel()
            task.cancel()

    def _later(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(_quietly(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _quietly(work: Any) -> None:
    with contextlib.suppress(OSError):  # no process to be had: the next question will say so
        await work


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
