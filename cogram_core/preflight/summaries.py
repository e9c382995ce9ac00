"""What a checkpoint's folder says of its network: its headers, its ``network.json``, or what names and shapes allow."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path

from pydantic import ValidationError

from cogram_core.checkpoints.header import CheckpointHeader, TensorSpec, read_checkpoint_header
from cogram_core.errors import NetworkError, Problem, RecipeError
from cogram_core.preflight.configuration import Configuration, read_configuration
from cogram_core.recipe.document import PATTERNS, SequentialNetwork
from cogram_core.recipe.layers import LAYER_NAME, MAX_LAYERS, MAX_SIZE, AnyLayer, Linear, ReLU
from cogram_core.recipe.reading import plain, read_text
from cogram_core.recipe.wording import as_problems, shown

NETWORK_FILE = "network.json"
_MAX_NETWORK_BYTES = 2**20


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint's headers and its network: its layers, or why none could be told.

    ``configuration`` is what its ``config.json`` says, None where there is none that can be used, for the reason ``fault``.
    """

    header: CheckpointHeader
    layers: tuple[AnyLayer, ...] | None
    described: bool
    """Whether the layers stand in the checkpoint's own ``network.json``; else they were inferred."""
    obstacle: str
    configuration: Configuration | None = None
    fault: str = ""

    @property
    def network_kind(self) -> str | None:
        """``sequential`` or ``transformers``, or None where the recipe has to describe the network."""
        if self.layers is not None:
            return "sequential"
        return "transformers" if self.configuration is not None and self.configuration.architectures else None


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
    configuration, fault = read_configuration(location)
    if description is not None:
        return CheckpointSummary(header, _read_network(description), True, "", configuration, fault)
    layers, obstacle = infer_layers(header)
    if configuration is not None and configuration.architectures:
        obstacle = ""
    return CheckpointSummary(header, layers, False, obstacle, configuration, fault)


def _network_file(location: Path | Mapping[str, Path]) -> Path | None:
    if isinstance(location, Path):
        path = location / NETWORK_FILE
        return path if path.is_file() else None
    return location.get(NETWORK_FILE)


def _read_network(path: Path) -> tuple[AnyLayer, ...]:
    try:
        if path.stat().st_size > _MAX_NETWORK_BYTES:
            message = f"is larger than {_MAX_NETWORK_BYTES} bytes; it should list layers and nothing else"
            raise NetworkError([Problem(NETWORK_FILE, "network.invalid", message)])
        document, problems = plain(read_text(path.read_text(encoding="utf-8"), NETWORK_FILE))
        layers = () if problems else SequentialNetwork.model_validate_json(json.dumps(document)).layers
    except ValidationError as error:
        problems = as_problems(error, document, SequentialNetwork, "network", PATTERNS)
    except RecipeError as error:
        raise NetworkError(Problem(p.location, "network.syntax", p.message) for p in error.problems) from error
    except (OSError, UnicodeDecodeError) as error:
        message = f"can't be read as UTF-8 text: {error}"
        raise NetworkError([Problem(NETWORK_FILE, "network.unreadable", message)]) from error
    if problems:
        raise NetworkError(
            Problem(f"{NETWORK_FILE}: {p.location}", p.code.replace("recipe.", "network."), p.message) for p in problems
        )
    return layers


def infer_layers(header: CheckpointHeader) -> tuple[tuple[AnyLayer, ...] | None, str]:
    """A chain of linear layers with ReLU between, where names and shapes allow no other reading of the tensors.

    Returns:
        The layers and an empty text, or None and what could not be inferred, with the remedy.
    """
    modules: dict[str, dict[str, TensorSpec]] = {}
    for name, spec in header.tensors.items():
        module, _, tensor = name.rpartition(".")
        modules.setdefault(module, {})[tensor] = spec
    chain = [(name, modules[name]) for name in sorted(modules, key=_natural)]
    obstacle = next(_obstacles(chain), None)
    if obstacle is not None:
        return None, f"{obstacle}; describe the network with network: {{kind: sequential, layers: […]}}"
    taken = {name.partition(".")[0] for name in modules}
    free = (word for word in map("relu{}".format, count()) if word not in taken)
    layers: list[AnyLayer] = []
    for name, tensors in chain:
        out, into = tensors["weight"].shape
        layers += [ReLU(type="relu", name=next(free))] if layers else []
        layers.append(Linear(type="linear", name=name, in_features=into, out_features=out, bias="bias" in tensors))
    return tuple(layers), ""


def _obstacles(chain: Sequence[tuple[str, Mapping[str, TensorSpec]]]) -> Iterator[str]:
    """Why modules, in the order of their names, are no chain of linear layers."""
    for name, tensors in chain:
        if re.fullmatch(LAYER_NAME, name) is None:
            yield f"the tensor names {', '.join(sorted(tensors))} don't say which module they belong to"
        if (fault := _not_linear(tensors)) is not None:
            yield f"module {shown(name)} {fault}, so the network can't be inferred"
    for (before, left), (after, right) in pairwise(chain):
        out, into = left["weight"].shape[0], right["weight"].shape[1]
        if out != into:
            yield f"{shown(before)} gives {out} values but {shown(after)} takes {into}, so they are no chain"
    if 2 * len(chain) > MAX_LAYERS:
        yield f"there are {len(chain)} modules, too many to be told by their names"


def _not_linear(tensors: Mapping[str, TensorSpec]) -> str | None:
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or set(tensors) - {"weight", "bias"}:
        return f"has the tensors {', '.join(shown(name) for name in sorted(tensors)[:8])}"
    if not all(spec.floating for spec in tensors.values()):
        return "has tensors of integers"
    if len(weight.shape) != 2 or not all(1 <= size <= MAX_SIZE for size in weight.shape):
        return f"has a weight of shape {list(weight.shape)}"
    if bias is not None and bias.shape != weight.shape[:1]:
        return f"has a weight of shape {list(weight.shape)} and a bias of shape {list(bias.shape)}"
    return None


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts fc2 before fc10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]
