"""What a checkpoint's folder says of its network: its headers, its ``network.json``, or what names and shapes allow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import ValidationError

from cogram_core.checkpoints.header import CheckpointHeader, TensorSpec, read_checkpoint_header
from cogram_core.errors import NetworkError, Problem
from cogram_core.recipe.document import SequentialNetwork
from cogram_core.recipe.layers import AnyLayer, Linear, ReLU

NETWORK_FILE = "network.json"
_MAX_NETWORK_BYTES = 2**20


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint's headers and its network: its layers, or why none could be told."""

    header: CheckpointHeader
    layers: tuple[AnyLayer, ...] | None
    described: bool
    """Whether the layers stand in the checkpoint's own ``network.json``; else they were inferred."""
    obstacle: str

    @property
    def network_kind(self) -> str | None:
        """``sequential``, or None where the recipe has to describe the network."""
        return None if self.layers is None else "sequential"


def summarise_checkpoint(location: Path | Mapping[str, Path]) -> CheckpointSummary:
    """Reads all headers and works out the network.

    Args:
        location: as for ``read_checkpoint_header``.

    Raises:
        CheckpointError: if the files are not a valid checkpoint.
        NetworkError: if its ``network.json`` is not valid.
    """
    header = read_checkpoint_header(location)
    description = _network_file(location)
    if description is not None:
        return CheckpointSummary(header, _read_network(description), True, "")
    layers, obstacle = infer_layers(header)
    return CheckpointSummary(header, layers, False, obstacle)


def _network_file(location: Path | Mapping[str, Path]) -> Path | None:
    if isinstance(location, Path):
        path = location / NETWORK_FILE
        return path if path.is_file() else None
    return location.get(NETWORK_FILE)


def _read_network(path: Path) -> tuple[AnyLayer, ...]:
    if path.stat().st_size > _MAX_NETWORK_BYTES:
        raise NetworkError([Problem(NETWORK_FILE, "network.invalid", f"is larger than {_MAX_NETWORK_BYTES} bytes")])
    try:
        return SequentialNetwork.model_validate_json(path.read_bytes()).layers
    except ValidationError as error:
        raise NetworkError(
            Problem(f"{NETWORK_FILE}: " + ".".join(map(str, detail["loc"])), "network.invalid", detail["msg"])
            for detail in error.errors(include_url=False)
        ) from error


def infer_layers(header: CheckpointHeader) -> tuple[tuple[AnyLayer, ...] | None, str]:
    """A chain of linear layers with ReLU between, where names and shapes allow no other reading of the tensors.

    Returns:
        The layers and an empty text, or None and what could not be inferred, with the remedy.
    """
    remedy = "describe it with network: {kind: sequential, layers: […]}"
    modules: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in header.tensors.items():
        module, _, tensor = name.rpartition(".")
        modules.setdefault(module, {})[tensor] = spec
    chain = [(name, modules[name]) for name in sorted(modules, key=_natural)]
    for name, tensors in chain:
        if (obstacle := _not_linear(tensors)) is not None:
            return None, f"module {name!r} {obstacle}, so the network can't be inferred; {remedy}"
    for (before, left), (after, right) in pairwise(chain):
        out, into = left["weight"].shape[0], right["weight"].shape[1]
        if out != into:
            return None, f"{before!r} gives {out} values but {after!r} takes {into}, so they are no chain; {remedy}"
    layers: list[AnyLayer] = []
    for name, tensors in chain:
        out, into = tensors["weight"].shape
        layers += [ReLU(type="relu", name=f"relu{len(layers)}")] if layers else []
        layers.append(Linear(type="linear", name=name, in_features=into, out_features=out, bias="bias" in tensors))
    return tuple(layers), ""


def _not_linear(tensors: Mapping[str, TensorSpec]) -> str | None:
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or set(tensors) - {"weight", "bias"}:
        return f"has the tensors {', '.join(sorted(tensors))}"
    if len(weight.shape) != 2 or 0 in weight.shape:
        return f"has a weight of shape {list(weight.shape)}"
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"has a weight of shape {list(weight.shape)} and a bias of shape {list(bias.shape)}"
    return None


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts fc2 before fc10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
