"""Token buckets, one for each key: who is quicker than the bucket fills has to wait.

They are kept in the memory of one API process: several processes let through that many times as much, and a restart
fills them all. That is enough against floods, and costs no round trip a request.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass

_MOST_BUCKETS = 10_000  # the longest unused is forgotten first, which can only fill it


@dataclass(frozen=True)
class Level:
    """How a bucket stands after a try to take from it."""

    taken: bool
    left: float
    capacity: float
    fill_seconds: float  # from empty to full
    wait_seconds: float  # until the next one may be taken


class Buckets:
    """Many buckets."""

    def __init__(self) -> None:
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what was left, and when

    def take(self, key: str, rate: float, capacity: float) -> Level:
        """Takes one, if there is one; the bucket fills with ``rate`` a second up to ``capacity``."""
        now = time.monotonic()
        left, since = self._levels.pop(key, (capacity, now))
        left = min(capacity, left + (now - since) * rate)
        taken = left >= 1
        if taken:
            left -= 1
        self._put(key, left, now)
        return Level(taken, left, capacity, capacity / rate, 0.0 if left >= 1 else (1 - left) / rate)

    def give_back(self, key: str) -> None:
        """What was taken needn't have been."""
        left, since = self._levels.get(key, (0.0, time.monotonic()))
        self._put(key, left + 1, since)

    def _put(self, key: str, left: float, now: float) -> None:
        self._levels[key] = (left, now)
        self._levels.move_to_end(key)
        while len(self._levels) > _MOST_BUCKETS:
            self._levels.popitem(last=False)
