"""The real service, its parts as processes of their own, each of which can be killed and comes back.

``embedded``: ``cogram serve``, whose own supervisor restarts what dies; SQLite and the broker on the disk under test.
``split``: ``cogram api``, ``dispatcher`` and two workers, restarted here, on PostgreSQL and a Redis of their own disk.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil

from app.children import Child, Program, stop_together
from app.store.migrate import migrate
from tests import services

_START_SECONDS = 90.0
_GRACE_SECONDS = 30.0
_SERVERS = {"valkey-server", "redis-server"}
QUEUES = ("fusion.cpu", "fusion.cpu", "io")

# Short leases, so that a soak of minutes sees what days would show. Attempts without end: a job whose worker is killed every
# few seconds may lose it more often than the three times that are enough in peace.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "COGRAM_LEASE_SECONDS": "12",
    "COGRAM_HEARTBEAT_SECONDS": "2",
    "COGRAM_MAX_ATTEMPTS": "1000",
    "COGRAM_REPUBLISH_SECONDS": "10",
    "COGRAM_MIN_FREE_BYTES": str(2**20),
    "COGRAM_COLLECT_SECONDS": "2",  # all the time, beside everything else
    "COGRAM_COLLECT_GRACE_SECONDS": "30",
    "COGRAM_REQUESTS_PER_SECOND": "1000",
}


class Stack:
    """Children of this process, their address, and where their rows and files are."""

    def __init__(self, address: str, data_dir: Path, database_url: str, children: list[Child]) -> None:
        self.address = address
        self.data_dir = data_dir
        self.database_url = database_url
        self._children = children

    def start(self) -> None:
        """All parts; returns once the service answers."""
        for child in self._children:
            child.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the service was not ready within {_START_SECONDS:.0f} seconds; see its log")
            self.keep_running()
            time.sleep(0.1)

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/v1/healthz/ready", timeout=5).is_success
        except httpx.TransportError:
            return False

    def keep_running(self) -> None:
        """Starts again what has died; to be called every moment, from the thread that started it."""
        for child in self._children:
            child.keep_running()

    def stop(self) -> None:
        """Gracefully, then for certain; the broker last, as it is the first to be started."""
        for children in (self._children[1:], self._children[:1]):
            stop_together(children, _GRACE_SECONDS)

    def part(self, name: str) -> psutil.Process | None:
        """A running process of the part; None if it is down just now."""
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if _part_of(process) == name:
                    return process
        return None

    def processes(self) -> list[int]:
        """The numbers of all that is written in Python."""
        found = psutil.Process().children(recursive=True)
        return [
            process.pid for process in found if _part_of(process) in {"API", "dispatcher", "worker", "worker's child"}
        ]


def _part_of(process: psutil.Process) -> str | None:
    try:
        words = process.cmdline()
        if process.name() in _SERVERS:
            return "broker"
        if "app.api" in words or words[2:4] == ["app.cli", "api"]:
            return "API"
        if "worker.dispatcher" in words:
            return "dispatcher"
        if "--queues" in words:
            parent = process.parent()
            return "worker's child" if parent is not None and "--queues" in parent.cmdline() else "worker"
    except psutil.Error:
        return None
    return None


@contextmanager
def embedded(folder: Path, away: Path) -> Iterator[Stack]:
    """``cogram serve`` with everything in ``folder``."""
    del away
    port = _free_port()
    data_dir = folder / "data"
    environment = {**SETTINGS, "DATABASE_URL": f"sqlite:///{data_dir / 'cogram.sqlite3'}"}
    words = ("serve", "--data-dir", str(data_dir), "--port", str(port))
    stack = Stack(
        f"http://127.0.0.1:{port}", data_dir, environment["DATABASE_URL"], [_cogram("serve", environment, *words)]
    )
    try:
        yield stack
    finally:
        stack.stop()


@contextmanager
def split(folder: Path, away: Path) -> Iterator[Stack]:
    """The parts one by one; database and broker in ``away``, on a disk that never is full."""
    port = _free_port()
    data_dir = folder / "data"
    data_dir.mkdir(mode=0o700)
    with ExitStack() as held:
        server = held.enter_context(services.postgresql())
        database_url = held.enter_context(server.empty_database())
        migrate(database_url)
        (away / "broker").mkdir(mode=0o700)
        broker = services.RedisServer(away / "broker")
        environment = {
            **SETTINGS,
            "COGRAM_DATA_DIR": str(data_dir),
            "DATABASE_URL": database_url,
            "BROKER_URL": broker.url,
        }
        commands = [("api", "--port", str(port)), ("dispatcher",), *(("worker", "--queues", name) for name in QUEUES)]
        children = [
            Child(Program("broker", tuple(broker.command()), orphan_signal=signal.SIGTERM)),
            *(_cogram(words[0], environment, *words) for words in commands),
        ]
        stack = Stack(f"http://127.0.0.1:{port}", data_dir, database_url, children)
        held.callback(stack.stop)
        yield stack


STACKS = {"embedded": embedded, "split": split}


def _cogram(name: str, environment: Mapping[str, str], *words: str) -> Child:
    return Child(Program(name, (sys.executable, "-m", "app.cli", *words), environment))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
