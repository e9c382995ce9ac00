"""Runs the parts that are named, or all: `python -m bench.service [jobs …]`. Ends with 1 if a figure misses its bound."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from bench.service import asking, jobs, transfers

PARTS: dict[str, Callable[[], bool]] = {
    "jobs": jobs.main,
    "jobs-2": lambda: jobs.main(workers=2),
    "uploads": transfers.uploads,
    "downloads": transfers.downloads,
    "latency": asking.latency,
    "followers": asking.followers,
}


def main() -> None:
    chosen = sys.argv[1:] or [*PARTS]
    if unknown := set(chosen) - set(PARTS):
        sys.exit(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    print(f"{os.cpu_count()} processors, load of the last minute {os.getloadavg()[0]:.1f}\n")
    missed = [name for name in chosen if not PARTS[name]()]
    if missed:
        sys.exit(f"missed their bounds: {', '.join(missed)}")


if __name__ == "__main__":
    main()
