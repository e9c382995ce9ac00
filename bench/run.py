"""Runs every benchmark, one after the other, each in a process of its own. `make bench`"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "bench.quality",
    "bench.evaluator",
    "bench.transformer",
    "bench.weights",
    "bench.memory",
    "bench.service_start",
    "bench.jobs",
)


def main() -> None:
    for name in BENCHMARKS:
        print(f"\n## python -m {name}\n", flush=True)
        subprocess.run([sys.executable, "-m", name], check=True)


if __name__ == "__main__":
    main()
