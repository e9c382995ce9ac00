"""Small networks, data, checkpoints and recipes for the core's tests. Everything is made from an explicit seed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


def random(seed: int) -> torch.Generator:
    """A generator of its own for each seed."""
    return torch.Generator().manual_seed(seed)


def points(seed: int, count: int = 60, shape: Sequence[int] = (6,), classes: int = 4, skew: float = 0.0) -> Pair:
    """Noisy points around one centre a class; the centres are the same for every seed.

    ``skew`` is the share of examples that are taken from the first (positive) or last (negative) half of the classes.
    """
    generator = random(seed)
    centres = torch.randn(classes, *shape, generator=random(classes))
    targets = torch.randint(0, classes, (count,), generator=generator)
    if skew:
        half = torch.randint(0, max(1, classes // 2), (count,), generator=generator)
        chosen = half if skew > 0 else classes - 1 - half
        targets = torch.where(torch.rand(count, generator=generator) < abs(skew), chosen, targets)
    inputs = centres[targets] + 0.8 * torch.randn(count, *shape, generator=generator)
    return inputs, targets


def initialise(module: nn.Module, seed: int, scale: float = 0.4) -> nn.Module:
    """Fills every floating tensor from the seed, statistics of normalisation included."""
    generator = random(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * scale
                norm = tensor.ndim == 1 and name.endswith(("running_var", "weight"))
                tensor.copy_(noise.exp() if norm else noise)
    return module.eval()


def mlp(seed: int, sizes: Sequence[int] = (6, 8, 5, 4)) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for into, out in pairwise(sizes):
        layers += [nn.ReLU()] if layers else []
        layers.append(nn.Linear(into, out))
    network = nn.Sequential(*layers)
    initialise(network, seed)
    return network


def conv_net(seed: int, classes: int = 3) -> nn.Sequential:
    """Convolution, batch normalisation and a linear layer, for inputs (1, 4, 4)."""
    network = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, classes)
    )
    initialise(network, seed)
    return network


def trained(module: nn.Module, data: Pair, steps: int = 25) -> nn.Module:
    """A copy after a few full-batch steps. By hand: importing torch.optim takes seconds."""
    copied = copy.deepcopy(module).eval()
    parameters = list(copied.parameters())
    for _ in range(steps):
        loss = nn.functional.cross_entropy(copied(data[0]), data[1])
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter -= 0.2 * gradient
    return copied


def specialists(seed: int, count: int = 2, build: Callable[[int], nn.Module] = mlp) -> list[nn.Module]:
    """Networks from one initialisation, each trained on other classes, so that no one is best at everything."""
    start = build(seed)
    shape, classes = ((1, 4, 4), 3) if build is conv_net else ((6,), 4)
    skews = [(0.9, -0.9)[place % 2] for place in range(count)]
    return [trained(start, points(seed + 1 + place, 60, shape, classes, skew)) for place, skew in enumerate(skews)]


def describe(module: nn.Sequential) -> list[dict[str, Any]]:
    """A sequential network's layers as a recipe lists them."""
    described: list[dict[str, Any]] = []
    for layer in module:
        entry: dict[str, Any] = {"type": type(layer).__name__.lower()}
        if isinstance(layer, nn.Linear):
            entry |= {"in_features": layer.in_features, "out_features": layer.out_features}
        elif isinstance(layer, nn.Conv2d):
            entry |= {"in_channels": layer.in_channels, "out_channels": layer.out_channels}
            entry |= {"kernel_size": list(layer.kernel_size), "padding": list(layer.padding)}
        elif isinstance(layer, nn.BatchNorm2d):
            entry |= {"num_features": layer.num_features}
        described.append(entry)
    return described


def save_checkpoint(folder: Path, module: nn.Sequential, dtype: torch.dtype | None = None) -> Path:
    """A checkpoint folder with ``network.json``; floating tensors in ``dtype`` if given."""
    state = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }
    save_state(folder, state)
    (folder / "network.json").write_text(json.dumps({"kind": "sequential", "layers": describe(module)}))
    return folder


def save_state(folder: Path, state: Mapping[str, Tensor]) -> Path:
    """A checkpoint folder with nothing but tensors."""
    folder.mkdir(parents=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return folder


def save_data(path: Path, data: Pair) -> Path:
    """A dataset file."""
    save_file({"inputs": data[0].contiguous(), "targets": data[1].contiguous()}, path)
    return path


def read_output(folder: Path) -> dict[str, Tensor]:
    """All tensors of a written checkpoint, one file or shards, by the safetensors library alone."""
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    return state


def checkpoint_bytes(folder: Path) -> dict[str, bytes]:
    """The bytes of every file that makes up a written checkpoint."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("model*"))}


def recipe_document(
    folder: Path,
    modules: Sequence[nn.Module],
    stages: Sequence[Any],
    *,
    evaluation: Pair | None = None,
    holdout: Pair | None = None,
    training: Pair | None = None,
    dtype: torch.dtype | None = None,
    **rest: Any,
) -> dict[str, Any]:
    """Writes checkpoints and data below ``folder`` and gives the recipe over them."""
    sources = []
    for place, module in enumerate(modules):
        assert isinstance(module, nn.Sequential)
        path = save_checkpoint(folder / f"source-{place}", module, dtype)
        sources.append({"name": f"module-{place}", "checkpoint": str(path)})
    pairs = {"evaluation": evaluation, "holdout": holdout, "training": training}
    data = {
        name: str(save_data(folder / f"{name}.safetensors", pair)) for name, pair in pairs.items() if pair is not None
    }
    listed = [{"method": stage} if isinstance(stage, str) else dict(stage) for stage in stages]
    return {"sources": sources, "data": data, "stages": listed, **rest}
