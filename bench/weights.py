"""The evaluator at weight level against full forward passes. `python -m bench.weights`

784-512-512-10 with 200 prototypes, the first weights of one neuron of each layer. No recipe restricts the weight level to
some neurons of every layer, so the windows of the core are called directly. Both sides take turns and must decide alike;
each runs in one thread, in float64, as the weight level does.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch

from bench.evaluator import REPEATS, Naive, Task, wide_task
from cogram_core import fuse_modules
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.fast import FastEvaluator
from cogram_core.journal import Journal
from cogram_core.methods.cogram.params import Params
from cogram_core.methods.cogram.visitor import Visitor
from cogram_core.methods.cogram.windows import Windows
from cogram_core.methods.contract import StageContext
from cogram_core.networks.network import Network
from cogram_core.observer import SilentObserver, StageInfo
from cogram_core.recording import Recorder
from cogram_core.sources import LoadedSource, MemoryStore
from cogram_core.trace import Decision

LAYERS = ("4", "2", "0")
WEIGHTS = 512  # each layer's slice: a whole neuron, or most of one
LEAST_RATIO = 20.0

Found = list[tuple[int, str]]
"""A weight's place in its layer, and what was done."""


def naive(task: Task) -> dict[str, tuple[float, Found]]:
    """Seconds and decisions of each layer's slice."""
    side, found = Naive(task, torch.float64), {}
    for layer in LAYERS:
        start = time.process_time()
        visits = [(place, action) for _, place, action in islice(side.weights(layer, 0, 1), WEIGHTS)]
        found[layer] = time.process_time() - start, visits
    return found


def engine(task: Task) -> dict[str, tuple[float, Found]]:
    """The same by the project's evaluator; opening the layer, with its trials, counts."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        decisions: list[Decision] = []
        context = _context(task, Recorder(Journal(Path(folder) / "journal"), decisions.append))
        with context.network.precision(torch.float64):
            evaluator = FastEvaluator(context.network, context.evaluation_data())
            visitor = Visitor(context, Params(granularity="weight"), evaluator, None, [0.0, 0.0])
            for layer in LAYERS:
                decisions.clear()
                start = time.process_time()
                own = next(known for known in context.network.layers if known.name == layer)
                Windows(visitor, own, "weight", _unheard).visit(0, WEIGHTS, None, _unheard)
                seconds = time.process_time() - start
                found[layer] = seconds, [((d.row or 0) * own.width + (d.column or 0), str(d.action)) for d in decisions]
    return found


def _context(task: Task, recorder: Recorder) -> StageContext:
    module = fuse_modules(task.sources, stages=["linear"]).module
    sources = [
        LoadedSource(str(place), 1.0, MemoryStore(str(place), source.state_dict()), torch.float32, torch.device("cpu"))
        for place, source in enumerate(task.sources)
    ]
    return StageContext(
        info=StageInfo(0, 1, "cogram"),
        sources=sources,
        base=None,
        network=Network(module, task.inputs[:1]),
        evaluation=Dataset(task.inputs, task.targets),
        training=None,
        holdout=None,
        seed=0,
        recorder=recorder,
        observer=SilentObserver(),
        milestone=_unheard,
        past=recorder.past,
        permute=_unheard,
        restore=lambda _: None,
    )


def _unheard(_: object) -> None:
    """Nobody listens here."""


def main() -> int:
    torch.set_num_threads(1)
    task = wide_task()
    rounds = []
    for _ in range(REPEATS):
        rounds.append((naive(task), engine(task)))
        slow, quick = rounds[-1]
        if any(slow[layer][1] != quick[layer][1] for layer in LAYERS):
            print("the two sides decide differently")
            return 1
    print(f"{REPEATS} rounds, {WEIGHTS} weights a layer, the same decisions\n")
    print("| layer | naive, a weight | engine, a weight | accepted | ratio |\n| --- | --- | --- | --- | --- |")
    ratios = []
    for layer in LAYERS:
        slow, quick = (statistics.median(one[place][layer][0] for one in rounds) for place in (0, 1))
        ratios.append(statistics.median(one[layer][0] / other[layer][0] for one, other in rounds))
        accepted = sum(action == "merged" for _, action in rounds[0][1][layer][1])
        print(f"| {layer} | {_micro(slow)} | {_micro(quick)} | {accepted} | {ratios[-1]:.0f} |")
    return 0 if min(ratios) >= LEAST_RATIO else 1


def _micro(seconds: float) -> str:
    return f"{seconds / WEIGHTS * 1e6:,.0f} µs"


if __name__ == "__main__":
    sys.exit(main())
