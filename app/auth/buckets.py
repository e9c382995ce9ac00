"""Token buckets, one for each key: who is quicker than the bucket fills has to wait.

They are kept in the memory of one API process: several processes let through that many times as much, and a restart
fills them all. That is enough against floods, and costs no round trip a request.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

_MOST_BUCKETS = 10_000  # the longest unused is forgotten first, which can only fill it


@dataclass(frozen=True)
class Level:
    """How a bucket stands."""

    has_one: bool  # that may be taken; or was
    left: float
    capacity: float
    fill_seconds: float  # from empty to full
    wait_seconds: float  # until the next one may be taken

    @property
    def headers(self) -> dict[str, str]:
        """As callers are told (draft-ietf-httpapi-ratelimit-headers)."""
        return {
            "RateLimit-Policy": f'"account";q={self.capacity:.0f};w={max(1, round(self.fill_seconds))}',
            "RateLimit": f'"account";r={max(0, int(self.left))};t={math.ceil(self.wait_seconds)}',
        }


class Buckets:
    """Many buckets."""

    def __init__(self) -> None:
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what was left, and when

    def look(self, key: str, rate: float, capacity: float) -> Level:
        """How the bucket stands; it fills with ``rate`` a second up to ``capacity``."""
        left = self._filled(key, rate, capacity)
        wait = 0.0 if left >= 1 else (1 - left) / rate
        return Level(left >= 1, left, capacity, capacity / rate, wait)

    def take(self, key: str, rate: float, capacity: float) -> Level:
        """Takes one, if there is one; how the bucket stands afterwards."""
        taken = self.look(key, rate, capacity).has_one
        if taken:
            self.charge(key, rate, capacity)
        return replace(self.look(key, rate, capacity), has_one=taken)

    def charge(self, key: str, rate: float, capacity: float) -> None:
        """Takes one even from an empty bucket: what it owes is filled first."""
        self._put(key, max(-capacity, self._filled(key, rate, capacity) - 1), time.monotonic())

    def _filled(self, key: str, rate: float, capacity: float) -> float:
        now = time.monotonic()
        left, since = self._levels.get(key, (capacity, now))
        return min(capacity, left + (now - since) * rate)

    def _put(self, key: str, left: float, now: float) -> None:
        self._levels[key] = (left, now)
        self._levels.move_to_end(key)
        while len(self._levels) > _MOST_BUCKETS:
            self._levels.popitem(last=False)
