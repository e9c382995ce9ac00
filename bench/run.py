"""Runs every benchmark, one after the other, each in a process of its own. `make bench`"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = (
    "bench.quality",
    "bench.evaluator",
    "bench.transformer",
    "bench.weights",
    "bench.fisher",
    "bench.merging",
    "bench.language",
    "bench.memory",
    "bench.service_start",
    "bench.jobs",
    "bench.service.__main__",
)


def main() -> None:
    failed = []
    for name in BENCHMARKS:
        print(f"\n## python -m {name}\n", flush=True)
        if subprocess.run([sys.executable, "-m", name], check=False).returncode != 0:
            failed.append(name)
    if failed:
        sys.exit(f"did not end well, or missed what they ask for: {', '.join(failed)}")


if __name__ == "__main__":
    main()
