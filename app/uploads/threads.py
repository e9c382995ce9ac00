"""Threads in which uploads touch disks and databases, apart from those that answer other requests."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")

# Of several kinds, so that a chunk never waits behind a file whose digest is being read again, nor behind one on its way
# to a far storage; and nothing else in the service behind any of them.
_SHORT = ThreadPoolExecutor(16, thread_name_prefix="upload")
_LONG = ThreadPoolExecutor(4, thread_name_prefix="upload-end")
_PLACING = ThreadPoolExecutor(16, thread_name_prefix="upload-place")


def in_thread(function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
    """For what takes moments: opening, writing a piece. It is done to its end even if nobody awaits it any more."""
    return begun(_SHORT, function, *arguments)


def in_long_thread(function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
    """For what may take minutes."""
    return begun(_LONG, function, *arguments)


def in_placing_thread(function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
    """For bringing a whole file to the blobs."""
    return begun(_PLACING, function, *arguments)


def begun(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
    """For a pool of the caller's own. It is done to its end even if nobody awaits it any more."""
    context = contextvars.copy_context()  # log lines from there carry the request's id, too
    return asyncio.get_running_loop().run_in_executor(pool, partial(context.run, function, *arguments))
