"""The API's process among those of the service, and how much memory it takes while something happens."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

_LOOK_SECONDS = 0.05


@dataclass
class Memory:
    """Resident bytes, at the beginning and at the most."""

    before: int
    most: int

    @property
    def growth(self) -> int:
        return self.most - self.before


def api_process() -> psutil.Process:
    """The one that this program has started, by way of `cogram serve`."""
    for child in psutil.Process().children(recursive=True):
        if "app.api" in child.cmdline():
            return child
    raise LookupError("no API process is running")


@contextmanager
def watched_memory(process: psutil.Process) -> Iterator[Memory]:
    """Looks again and again while the block runs."""
    first = process.memory_info().rss
    memory, over = Memory(first, first), threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            memory.most = max(memory.most, process.memory_info().rss)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield memory
    finally:
        over.set()
        thread.join()
        memory.most = max(memory.most, process.memory_info().rss)
