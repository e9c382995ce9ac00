"""Two small networks and their data, as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FEATURES, CLASSES = 12, 4


@dataclass(frozen=True)
class Inputs:
    """Where they lie."""

    folder: Path

    def path(self, name: str) -> Path:
        """The file of a checkpoint (a, b) or of data (evaluation, holdout)."""
        return self.folder / name / "model.safetensors"

    def recipe(self, **changes: Any) -> dict[str, Any]:
        """Fisher, then CoGraM; references are names."""
        recipe: dict[str, Any] = {
            "sources": [{"name": "a", "checkpoint": "a"}, {"name": "b", "checkpoint": "b"}],
            "data": {"evaluation": "evaluation", "holdout": "holdout"},
            "stages": [
                {"method": "fisher", "examples": 64},
                {"method": "cogram", "granularity": "layer"},
                {"method": "cogram", "granularity": "neuron"},
            ],
            "device": "cpu",
        }
        return recipe | changes

    def long_recipe(self) -> dict[str, Any]:
        """One that asks about every neuron on every example."""
        return self.recipe(stages=[{"method": "cogram", "granularity": "neuron", "prototypes": {"kind": "all"}}])

    def local(self, recipe: dict[str, Any]) -> dict[str, Path]:
        """Where the recipe's references lie on this machine."""
        names = ["a", "b", *recipe["data"].values()]
        return {name: self.path(name) for name in names}


def make_inputs(folder: Path, hidden: int, examples: int, seed: int = 1) -> Inputs:
    """Networks of ``hidden`` neurons, each trained for a moment on its own half of the classes."""
    inputs = Inputs(folder)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, generator=generator) * 2

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        targets = torch.randint(0, CLASSES, (count,), generator=generator)
        return centres[targets] + torch.randn(count, FEATURES, generator=generator), targets

    for name in ("evaluation", "holdout"):
        values, targets = draw(examples)
        _save({"inputs": values, "targets": targets}, inputs.path(name))
    start = {
        "fc1.weight": torch.randn(hidden, FEATURES, generator=generator) * 0.3,
        "fc1.bias": torch.zeros(hidden),
        "fc2.weight": torch.randn(CLASSES, hidden, generator=generator) * 0.3,
        "fc2.bias": torch.zeros(CLASSES),
    }
    values, targets = draw(400)
    for name, mine in (("a", targets < CLASSES // 2), ("b", targets >= CLASSES // 2)):
        _save(_trained(start, values[mine], targets[mine]), inputs.path(name))
    return inputs


def _trained(start: dict[str, torch.Tensor], values: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.SGD(tensors.values(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        hidden = torch.relu(values @ tensors["fc1.weight"].T + tensors["fc1.bias"])
        scores = hidden @ tensors["fc2.weight"].T + tensors["fc2.bias"]
        torch.nn.functional.cross_entropy(scores, targets).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True)
    save_file(tensors, path)
