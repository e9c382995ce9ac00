"""What a written checkpoint is worth, worked out with plain torch, numpy and the safetensors library."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.core.factories import read_output


def logits_of(module: nn.Module, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Class scores in float64 of a network that holds ``state``, computed in float32."""
    network = copy.deepcopy(module).float().eval()
    network.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()}, strict=True)
    with torch.no_grad():
        result: Tensor = network(inputs).double()
    return result


def criterion(name: str, module: nn.Module, state: Mapping[str, Tensor], data: tuple[Tensor, Tensor]) -> float:
    """The guard's number, smaller is better."""
    inputs, targets = data
    logits = logits_of(module, state, inputs)
    if name == "accuracy":
        return -float((logits.argmax(1) == targets).double().mean())
    if name == "loss":
        return float(nn.functional.cross_entropy(logits, targets))
    return calibrated(logits, targets)


def calibrated(logits: Tensor, targets: Tensor) -> float:
    """The least mean loss over a grid of temperatures that is drawn closer and closer."""
    low, high, best = np.log(0.01), np.log(100.0), np.inf
    for _ in range(6):
        grid = np.linspace(low, high, 81)
        losses = [float(nn.functional.cross_entropy(logits / float(np.exp(t)), targets)) for t in grid]
        at = int(np.argmin(losses))
        best = min(best, losses[at])
        low, high = grid[max(0, at - 1)], grid[min(80, at + 1)]
    return best


def rounded(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A state as it would be written in ``dtype``."""
    return {n: t.to(dtype) if dtype is not None and t.is_floating_point() else t for n, t in state.items()}


def plain_average(folders: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of checkpoints, from their files, in float32."""
    states = [read_output(folder) for folder in folders]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).float()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in states[0].items()
    }
