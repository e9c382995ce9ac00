"""The files of a plan: networks and data, a function of the seed."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.chaos.plan import USES, Family, Plan

Tensors = dict[str, torch.Tensor]


class Files:
    """One file a name, and what kind of thing it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kinds: dict[str, str] = {}  # checkpoint or dataset, in the order of making

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def local(self) -> dict[str, Path]:
        """Where each name lies on this machine."""
        return {name: self.path(name) for name in self.kinds}

    def add(self, kind: str, name: str, tensors: Tensors) -> None:
        save_file(tensors, self.path(name))
        self.kinds[name] = kind


def make_files(plan: Plan, folder: Path) -> Files:
    """Draws and writes everything that the plan's recipes name."""
    folder.mkdir()
    files = Files(folder)
    for family in plan.families:
        random = _generator(plan.seed, family.number)
        for name in family.members:
            files.add("checkpoint", name, _network(family, random))
        broken = _network(family, random)
        broken["0.bias"][1] = torch.nan
        files.add("checkpoint", family.broken, broken)
        centres = torch.randn(family.classes, family.features, generator=random) * 1.5
        for use in USES:
            files.add("dataset", family.data(use), _examples(family, centres, random))
    for job in plan.jobs:
        if job.own_source is not None:
            random = _generator(plan.seed, 1000 + job.number)
            files.add("checkpoint", job.own_source, _network(job.family, random))
    for bulk in plan.bulk:
        random = _generator(plan.seed, 1_000_000 + bulk.number)
        files.add("checkpoint", bulk.name, {"values": torch.randn(bulk.values, generator=random)})
    return files


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + stream)


def _network(family: Family, random: torch.Generator) -> Tensors:
    """Linear layers named as in a Sequential with ReLU between."""
    sizes = [family.features, *family.hidden, family.classes]
    tensors = {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        tensors[f"{2 * index}.weight"] = torch.randn(outputs, inputs, generator=random) / inputs**0.5
        tensors[f"{2 * index}.bias"] = torch.randn(outputs, generator=random) / 10
    return tensors


def _examples(family: Family, centres: torch.Tensor, random: torch.Generator) -> Tensors:
    targets = torch.randint(0, family.classes, (family.examples,), generator=random)
    return {
        "inputs": centres[targets] + torch.randn(family.examples, family.features, generator=random),
        "targets": targets,
    }
