"""Runs the experiments and prints a Markdown table each; a run that was stopped goes on. `make bench-paper`"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from bench.paper.asking import Asking
from bench.paper.experiments import EXPERIMENTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.paper", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="seeds 0 to N − 1 (10)")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="some of them")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.only:
        experiment, began = EXPERIMENTS[name], time.monotonic()
        print(f"{experiment.title} ", end="", file=sys.stderr, flush=True)
        table = experiment.run(Asking(range(given.seeds)))
        print(f" {time.monotonic() - began:.0f} s", file=sys.stderr)
        print(f"\n## {experiment.title} ({given.seeds} seeds where nothing else is said)\n\n{table}", flush=True)


if __name__ == "__main__":
    main()
