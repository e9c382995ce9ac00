"""What was counted, and what was found wrong; written by many threads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any

FULL_DISK_CODES = frozenset({"output.failed", "storage.full"})  # of fusions that a full disk ended
_MOST_SHOWN = 40
_AFTERMATH = timedelta(seconds=5)


@dataclass
class Accepted:
    """A fusion that the service acknowledged, and what its caller saw of it."""

    fusion_id: str
    job: int
    state: str = ""
    events: list[tuple[int, str]] = field(default_factory=list)  # id and type, as followed
    error: dict[str, Any] | None = None


class Tally:
    """Counts by name; findings in words."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.accepted: dict[str, Accepted] = {}
        self.uploads: dict[str, str] = {}  # acknowledged: name to sha256
        self.log: list[str] = []
        self._full: list[tuple[datetime, datetime]] = []
        self._start = time.monotonic()

    def count(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self.counts[name] += amount

    def accept(self, fusion_id: str, job: int) -> Accepted:
        """Notes an answer 202; one fusion may be acknowledged several times under one key."""
        with self._lock:
            return self.accepted.setdefault(fusion_id, Accepted(fusion_id, job))

    def acknowledge(self, name: str, digest: str, size: int) -> None:
        with self._lock:
            self.uploads[name] = digest
            self.counts["bytes uploaded"] += size

    def find(self, problem: str) -> None:
        """Something that must not be."""
        with self._lock:
            self.findings.append(problem)
        self.note(f"FINDING {problem}")

    def check(self, holds: bool, problem: str) -> None:
        if not holds:
            self.find(problem)

    def note(self, what: str) -> None:
        """A line for the run's own log."""
        with self._lock:
            self.log.append(f"{time.monotonic() - self._start:8.2f} {what}")

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """While the block runs, the disk is full."""
        self.note("the disk is full")
        self.count("times the disk was full")
        begin = datetime.now(UTC)
        try:
            yield
        finally:
            self._full.append((begin, datetime.now(UTC)))
            self.note("the disk has room again")

    def disk_was_full(self, moment: datetime | None) -> bool:
        """At the moment, or shortly before it: what could not be written is told a little later."""
        return moment is not None and any(begin <= moment <= end + _AFTERMATH for begin, end in self._full)

    def shown_findings(self) -> list[str]:
        more = len(self.findings) - _MOST_SHOWN
        return self.findings[:_MOST_SHOWN] + ([f"and {more} more"] if more > 0 else [])
