"""A small language model: held-out bits per byte of three experts fused in every way there is. `python -m bench.language`

GPT-2 of 4 layers and 128 features over bytes, trained here: a base on mixed text of this machine, then one expert each on
Python's library, C headers and manual pages. A fused network is judged by its mean bits per byte over the held-out files of
all three; less is better. Statistics are taken on 64 windows of each expert's own text, from many files, which no training
saw; no fusion sees the held-out files.
"""

from __future__ import annotations

import gzip
import math
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from cogram_core import fuse

SEEDS = range(3)
WINDOW, BATCH = 128, 16
BASE_STEPS, EXPERT_STEPS, RATE = 800, 400, 1e-3
HELD_OUT, OWN, FILES = 64, 64, 120  # windows, windows, files of each kind
TEXTS = ("python", "headers", "manual")
WAYS: Mapping[str, Sequence[Any]] = {
    "plain average": ["linear"],
    "Fisher": ["fisher"],
    "RegMean": ["regmean"],
    "Chain of Merges, rest: average": ["chain_of_merges"],
    "Chain of Merges, rest: fisher": [{"method": "chain_of_merges", "rest": "fisher"}],
    "Chain of Merges, propagated target": [{"method": "chain_of_merges", "target": "propagated"}],
}


def _files(kind: str) -> Iterable[Path]:
    if kind == "python":
        return Path(sysconfig.get_paths()["stdlib"]).glob("*.py")
    if kind == "headers":
        return Path("/usr/include").rglob("*.h")
    return Path("/usr/share/man/man1").glob("*.gz")


def texts(kind: str, seed: int) -> list[bytes]:
    """Some files of one kind, each of 2,000 bytes and more, in an order of the seed's."""
    paths = sorted(path for path in _files(kind) if path.is_file())
    random.Random(seed).shuffle(paths)
    found = []
    for path in paths:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if len(content) > 2000:
            found.append(content)
        if len(found) == FILES:
            return found
    raise SystemExit(f"fewer than {FILES} files of {kind} on this machine; install what carries some")


def windows(files: Sequence[bytes], count: int, draw: random.Random) -> Tensor:
    """Windows from all files in turn, int64 (count, WINDOW)."""
    chosen = []
    for place in range(count):
        content = files[place % len(files)]
        start = draw.randrange(len(content) - WINDOW)
        chosen.append(torch.tensor(list(content[start : start + WINDOW])))
    return torch.stack(chosen)


def trained(network: GPT2LMHeadModel, files: Sequence[bytes], steps: int, seed: int) -> None:
    draw = random.Random(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    network.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20) * (1 - step / steps)
        shuffled = draw.sample(list(files), BATCH)
        ids = windows(shuffled, BATCH, draw)
        optimizer.zero_grad()
        network(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    network.eval()


def bits_per_byte(network: GPT2LMHeadModel, ids: Tensor) -> float:
    with torch.no_grad():
        logits = network(input_ids=ids).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), ids[:, 1:].flatten())
    return float(loss) / math.log(2)


def experts(folder: Path, seed: int) -> dict[str, Tensor]:
    """Trains everything, writes checkpoints and data into a folder; the held-out windows of each kind."""
    kept: dict[str, dict[str, list[bytes]]] = {}
    for kind in TEXTS:
        files = texts(kind, seed)
        kept[kind] = {"held out": files[:30], "own": files[30:60], "training": files[60:]}
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=256, n_positions=WINDOW, n_embd=128, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    base = GPT2LMHeadModel(config)
    for part in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, part, 0.0)
    trained(base, [content for kind in TEXTS for content in kept[kind]["training"]], BASE_STEPS, seed)
    base.save_pretrained(folder / "base")
    held_out = {}
    for place, kind in enumerate(TEXTS):
        network = GPT2LMHeadModel.from_pretrained(folder / "base")
        trained(network, kept[kind]["training"], EXPERT_STEPS, 10 * seed + place)
        network.save_pretrained(folder / kind)
        draw = random.Random(1000 + 10 * seed + place)
        held_out[kind] = windows(kept[kind]["held out"], HELD_OUT, draw)
        ids = windows(kept[kind]["own"], OWN, draw)
        save_file({"input_ids": ids, "labels": ids.clone()}, folder / f"{kind}.safetensors")
    return held_out


def measured(seed: int) -> dict[str, list[float]]:
    """Bits per byte of each kind of text, and seconds at the end, by the name of the way."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        held_out = experts(folder, seed)
        own = [bits_per_byte(_loaded(folder / kind), held_out[kind]) for kind in TEXTS]
        found["experts, each on its own"] = [*own, 0.0]
        base = _loaded(folder / "base")
        found["base"] = [*(bits_per_byte(base, held_out[kind]) for kind in TEXTS), 0.0]
        for way, stages in WAYS.items():
            recipe = {
                "sources": [
                    {"name": kind, "checkpoint": str(folder / kind), "data": str(folder / f"{kind}.safetensors")}
                    for kind in TEXTS
                ],
                "stages": [stage if isinstance(stage, dict) else {"method": stage} for stage in stages],
                "guard": "off",
            }
            start = time.perf_counter()
            fuse(recipe, folder / way)
            seconds = time.perf_counter() - start
            network = _loaded(folder / way)
            found[way] = [*(bits_per_byte(network, held_out[kind]) for kind in TEXTS), seconds]
    return found


def _loaded(folder: Path) -> GPT2LMHeadModel:
    network: GPT2LMHeadModel = GPT2LMHeadModel.from_pretrained(folder)
    return network.eval()


def main() -> int:
    """Prints the table; 1 if Chain of Merges does not beat average and RegMean."""
    runs = []
    for seed in SEEDS:
        runs.append(measured(seed))
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    means = {way: [statistics.fmean(run[way][:3]) for run in runs] for way in runs[0]}
    print("| bits per byte | " + " | ".join(TEXTS) + " | mean ± std | against the average, paired | seconds |")
    print("| --- " * 7 + "|")
    for way, values in means.items():
        each = [statistics.fmean(run[way][place] for run in runs) for place in range(3)]
        paired = [value - average for value, average in zip(values, means["plain average"], strict=True)]
        figures = "".join(f" {value:.3f} |" for value in each)
        spread = statistics.stdev(values)
        seconds = statistics.median(run[way][3] for run in runs)
        print(
            f"| {way} |{figures} {statistics.fmean(values):.3f} ± {spread:.3f} | {statistics.fmean(paired):+.3f} "
            f"| {seconds:.1f} |"
        )
    best = min(statistics.fmean(values) for way, values in means.items() if way.startswith("Chain of Merges"))
    others = {way: statistics.fmean(means[way]) for way in ("plain average", "RegMean")}
    held = all(best < other for other in others.values())
    print(f"\nChain of Merges beats average and RegMean: {'holds' if held else 'MISSED'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
