"""``cogram serve`` as a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from app.client import Client

T = TypeVar("T")
READY = re.compile(r"cogram is ready at (http://\S+) \(data in (.+)\)")


class Served:
    """A running service."""

    def __init__(self, process: subprocess.Popen[str], address: str, folder: Path) -> None:
        self.process = process
        self.address = address
        self.folder = folder

    def client(self) -> Client:
        """A new client."""
        return Client(self.address)

    def family(self) -> list[psutil.Process]:
        """The process and everything that it has started, directly or not."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def part(self, *words: str) -> psutil.Process:
        """The direct child whose command line has these words, once it is there."""

        def found() -> psutil.Process | None:
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if set(words) <= set(child.cmdline()):
                        return child
            return None

        return until(found)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 20) -> int:
        """Sends a signal, and waits for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)


@contextmanager
def serving(folder: Path, *options: str, **environment: str) -> Iterator[Served]:
    """The service over the files in ``folder``; gone, with all its parts, at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve", "--data-dir", str(folder), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"COGRAM_LEASE_SECONDS": "3", "COGRAM_HEARTBEAT_SECONDS": "0.5"} | environment,
        )
    assert process.stdout is not None
    family: list[psutil.Process] = []
    try:
        line = process.stdout.readline()
        ready = READY.fullmatch(line.strip())
        assert ready is not None, f"{line!r}; {Path(log.name).read_text()}"
        served = Served(process, ready[1], Path(ready[2]))
        yield served
        if process.poll() is None:
            family = served.family()
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
    assert gone(family), "the service left processes behind"


def gone(processes: list[psutil.Process], timeout: float = 5) -> bool:
    """Whether all of them end in time."""
    _, alive = psutil.wait_procs(processes, timeout)
    return not alive


def until(ask: Callable[[], T | None], timeout: float = 60) -> T:
    """The first answer that isn't None or False."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        answer = ask()
        if answer:
            return answer
        time.sleep(0.05)
    raise AssertionError(f"nothing within {timeout} seconds")
