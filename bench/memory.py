"""Peak memory of ``cogram fuse`` from checkpoints on disk. `python -m bench.memory`

Each case is a process of its own, whose peak (VmHWM) is compared with that of the same recipe on a tiny network. What it
may take: three times the network in the compute dtype, and the batches' budget. The number of sources doesn't count,
for they are read layer by layer.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cogram_core.evaluation.batches import BATCH_BYTES
from cogram_core.evaluation.columns import POOLED_BYTES

NETWORKS = 3
BATCHES = 6  # tensors of a batch's size that are there at once: read, written, and between
EXAMPLES, FEATURES, CLASSES = 64, 64, 10
DECISIONS = {"layer": 9, "neuron": 100}
FIGURES = re.compile(r"VmHWM:\s+(\d+) kB")
# The command itself, and then what the system says of the process.
PROGRAM = """
import sys
from pathlib import Path
from app.cli.command_line import main
try:
    main()
except SystemExit as end:
    print(Path("/proc/self/status").read_text())
    sys.exit(end.code)
"""


@dataclass(frozen=True)
class Size:
    """A residual network: linear, blocks of two linear layers with ReLU between and a shortcut, linear."""

    width: int
    blocks: int

    def layers(self) -> list[dict[str, Any]]:
        wide = {"type": "linear", "in_features": self.width, "out_features": self.width}
        block = {"type": "residual", "layers": [wide, {"type": "relu"}, wide]}
        return [
            {"type": "linear", "in_features": FEATURES, "out_features": self.width},
            *([block] * self.blocks),
            {"type": "linear", "in_features": self.width, "out_features": CLASSES},
        ]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        linear = {"0": (self.width, FEATURES), f"{self.blocks + 1}": (CLASSES, self.width)}
        for block in range(self.blocks):
            linear |= {f"{block + 1}.layers.{place}": (self.width, self.width) for place in (0, 2)}
        return {f"{name}.{part}": shape[:count] for name, shape in linear.items() for part, count in _PARTS}

    @property
    def bytes(self) -> int:
        """Of the network in float32."""
        return 4 * sum(torch.Size(shape).numel() for shape in self.shapes().values())

    @property
    def recorded(self) -> int:
        """Bytes of every module's output once, in float64, for both data sets."""
        return 2 * 8 * EXAMPLES * self.width * (4 * self.blocks + 2)


_PARTS = (("weight", 2), ("bias", 1))
SMALL, LARGE = Size(width=64, blocks=2), Size(width=1024, blocks=24)


def write_inputs(folder: Path, size: Size, sources: int) -> None:
    """Sources around one start, so that mixing them makes sense, and data that the first of them has made."""
    random = torch.Generator().manual_seed(0)
    for name in ("evaluation", "holdout"):
        inputs = torch.randn(EXAMPLES, FEATURES, generator=random)
        targets = torch.randint(CLASSES, (EXAMPLES,), generator=random)
        save_file({"inputs": inputs, "targets": targets}, folder / f"{name}.safetensors")
    for source in range(sources):
        save_file(_state(size, source), folder / f"{source}.safetensors")


def _state(size: Size, source: int) -> dict[str, Tensor]:
    start, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1 + source)
    state = {}
    for name, shape in size.shapes().items():
        scale = 0.5 * shape[-1] ** -0.5 if len(shape) > 1 else 0.01
        state[name] = scale * (torch.randn(shape, generator=start) + 0.2 * torch.randn(shape, generator=own))
    return state


def recipe(size: Size, sources: int, level: str) -> dict[str, Any]:
    sweeps = {"layer": 1} if level == "layer" else {"layer": 0, "neuron": 1}
    return {
        "sources": [{"name": f"source-{n}", "checkpoint": f"{n}.safetensors"} for n in range(sources)],
        "network": {"kind": "sequential", "layers": size.layers()},
        "data": {name: f"{name}.safetensors" for name in ("evaluation", "holdout")},
        "stages": [
            {"method": "linear"},
            {"method": "cogram", "granularity": level, "max_sweeps": sweeps, "max_decisions": DECISIONS[level]},
        ],
    }


def peak(size: Size, sources: int, level: str) -> int:
    """Bytes that the command had resident at its most."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own, for this one's memory is none of the command's.
        write_inputs(folder, size, sources)
        (folder / "recipe.yaml").write_text(json.dumps(recipe(size, sources, level)), encoding="utf-8")
        command = [sys.executable, "-c", PROGRAM, "fuse", str(folder / "recipe.yaml"), "-o", str(folder / "out")]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
        figure = FIGURES.search(ended.stdout)
        if ended.returncode != 0 or figure is None:
            raise SystemExit(ended.stderr)
        return 1024 * int(figure[1])


def report(cases: Sequence[tuple[str, int]]) -> bool:
    """Prints the table; whether every case stays within its bound."""
    batches = BATCHES * BATCH_BYTES["cpu"] + POOLED_BYTES
    budget = batches + LARGE.recorded
    bound = NETWORKS * LARGE.bytes + budget
    print(f"network {LARGE.bytes / 1e6:.0f} MB in float32; batches {batches / 1e6:.0f} MB, ", end="")
    print(f"recorded outputs {LARGE.recorded / 1e6:.0f} MB; bound {bound / 1e6:.0f} MB\n")
    print("| granularity | sources | peak | in networks |\n| --- | --- | --- | --- |")
    held = True
    for level, sources in cases:
        most = peak(LARGE, sources, level) - peak(SMALL, sources, level)
        held &= most <= bound
        print(f"| {level} | {sources} | {most / 1e6:.0f} MB | {most / LARGE.bytes:.2f} |", flush=True)
    return held


def main() -> int:
    torch.set_num_threads(1)
    return 0 if report([(level, sources) for level in DECISIONS for sources in (2, 8)]) else 1


if __name__ == "__main__":
    sys.exit(main())
