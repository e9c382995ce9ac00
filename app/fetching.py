"""Files of the blobs' storage while a request reads them: brought here, if they are far, by threads that answer nobody else.

A far storage may take minutes for each; those who wait for it wait behind one another, and nobody else behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from typing import TypeVar

from app.uploads.threads import begun, in_thread

T = TypeVar("T")
_FETCHING = ThreadPoolExecutor(16, thread_name_prefix="fetch")


@asynccontextmanager
async def fetched(files: AbstractContextManager[T]) -> AsyncIterator[T]:
    """What ``files`` gives, for as long as the block runs."""
    held = ExitStack()
    found = await fetch(files, held)
    try:
        yield found
    finally:
        await in_thread(held.close)


async def fetch(files: AbstractContextManager[T], held: ExitStack) -> T:
    """What ``files`` gives, until ``held`` is closed; if the caller leaves meanwhile, until it has come."""
    coming = begun(_FETCHING, held.enter_context, files)
    try:
        return await asyncio.shield(coming)
    except asyncio.CancelledError:
        coming.add_done_callback(lambda _: in_thread(held.close))
        raise
