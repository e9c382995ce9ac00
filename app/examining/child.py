"""One examiner from the API's side: started, asked, killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

from app.examining.errors import TooCostly
from app.examining.frames import MOST_BYTES, PREFIX, encoded
from app.examining.limits import OUT_OF_MEMORY, Limits

_START_SECONDS = 60.0


class Lost(Exception):
    """The child ended without an answer."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ended with code {code}")
        self.of_memory = code < 0 or code == OUT_OF_MEMORY  # where memory is short, the kernel or the allocator kills


class Child:
    """Answers one question at a time."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._came_up = False
        self.worn = False

    @classmethod
    async def start(cls, limits: Limits) -> Child:
        """A fresh one; it is ready for its first question at once, and answers when it has come up."""
        command = (sys.executable, "-m", "app.examining.examiner", "--memory-bytes", str(limits.memory_bytes))
        return cls(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE))

    async def ask(self, question: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """Its answer.

        Raises:
            TooCostly: when its time was up.
            Lost: when it ended for another reason; then, and after TooCostly, it is of no use any more.
        """
        self.worn = True  # until it has answered
        try:
            await self._come_up()
            async with asyncio.timeout(limits.seconds):
                answer = await self._exchange({**question, "cpu_seconds": limits.cpu_seconds})
        except TimeoutError:
            raise TooCostly.beyond(f"{limits.seconds:g} seconds (COGRAM_EXAMINE_SECONDS)") from None
        except (asyncio.IncompleteReadError, ConnectionError, ValueError) as error:
            code = await self._ended()
            if code == -signal.SIGXCPU:
                limit = f"{limits.cpu_seconds} seconds of processor time (COGRAM_EXAMINE_CPU_SECONDS)"
                raise TooCostly.beyond(limit) from error
            raise Lost(code) from error
        self.worn = bool(answer.pop("worn"))
        return answer

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def lives(self) -> bool:
        """Whether it can be asked again."""
        return not self.worn and self._process.returncode is None

    def kill(self) -> None:
        """Ends it, whatever it does."""
        self.worn = True
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def bury(self) -> None:
        """Ends it, and waits until its pipes are closed."""
        self.kill()
        await self._process.communicate()

    async def _exchange(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(encoded(question))
        await self._process.stdin.drain()
        return await self._said()

    async def _come_up(self) -> None:
        """Its first words say that it is ready: importing is nothing that a question's time is spent on."""
        if not self._came_up:
            async with asyncio.timeout(_START_SECONDS):
                self._came_up = bool(await self._said())

    async def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        (size,) = PREFIX.unpack(await self._process.stdout.readexactly(PREFIX.size))
        if size > MOST_BYTES:
            raise ValueError(f"an answer of {size} bytes")
        answer: dict[str, Any] = json.loads(await self._process.stdout.readexactly(size))
        return answer

    async def _ended(self) -> int:
        """Its exit code; its pipe closes a moment before there is one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                return await self._process.wait()
        self.kill()
        return await self._process.wait()
