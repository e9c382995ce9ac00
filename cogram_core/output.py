"""Writes a run's checkpoint: dtypes, shards, and the files that are carried over from the first source."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogram_core.checkpoints.torch_dtypes import DTYPE_NAMES
from cogram_core.checkpoints.writer import CheckpointWriter, TensorLayout
from cogram_core.errors import InvalidInput, Problem
from cogram_core.preflight.configuration import CONFIG_FILE, Configuration, read_configuration
from cogram_core.recipe import Recipe, TransformersNetwork
from cogram_core.sources import TensorStore, finite
from cogram_core.stopping import stop_point

# Small files that say how to use the tensors; everything else in a source's folder stays there.
_CARRIED = (
    CONFIG_FILE,
    "network.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)


def output_dtypes(recipe: Recipe, store: TensorStore) -> dict[str, torch.dtype]:
    """The dtype each tensor is written in; integers keep theirs."""
    chosen = None if recipe.output.dtype == "source" else getattr(torch, recipe.output.dtype)
    return {name: chosen if chosen and facts.floating else facts.dtype for name, facts in store.facts().items()}


def write_checkpoint(
    folder: Path,
    recipe: Recipe,
    first: TensorStore,
    dtypes: Mapping[str, torch.dtype],
    value: Callable[[str], Tensor],
) -> tuple[str, ...]:
    """Writes all tensors one by one, rounding each once.

    Args:
        folder: exists and is empty.
        recipe: says how large a shard may be.
        first: the first source; integer and bool tensors are its.
        dtypes: see ``output_dtypes``.
        value: the fused floating tensor of a name.

    Returns:
        The names of the files.

    Raises:
        InvalidInput: if a fused number is too large for the dtype it is written in.
        OutputError: if the files can't be written.
    """
    facts = first.facts()
    layout = [TensorLayout(name, DTYPE_NAMES[dtypes[name]], entry.shape) for name, entry in facts.items()]
    with CheckpointWriter(
        folder, layout, max_shard_bytes=recipe.output.max_shard_bytes, metadata={"format": "pt"}
    ) as writer:
        for name, entry in facts.items():
            stop_point()
            writer.write(name, _rounded(name, value(name), dtypes[name]) if entry.floating else first.read(name))
        return writer.finish()


def _rounded(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = value.to(dtype)
    if not finite(rounded):
        message = f"a fused number is too large for {DTYPE_NAMES[dtype]}; choose a wider output.dtype or compute_dtype"
        raise InvalidInput([Problem(f"output: {name}", "output.not_finite", message)])
    return rounded


def carry_over(source: Path, folder: Path, recipe: Recipe) -> None:
    """Copies the first source's configuration and tokenizer files beside the tensors.

    A transformers network's configuration then says which one was run, and the dtype where another one was asked for.
    """
    if not source.is_dir():
        return
    for name in _CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    configuration, _ = read_configuration(folder)
    if configuration is not None and (changes := _changes(recipe, configuration)):
        document = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        document.pop("torch_dtype" if "dtype" in changes else "", None)  # what the library called it before
        (folder / CONFIG_FILE).write_text(json.dumps(document | changes, indent=2) + "\n", encoding="utf-8")


def _changes(recipe: Recipe, configuration: Configuration) -> dict[str, Any]:
    """What the fused network's configuration says otherwise than the first source's."""
    changes: dict[str, Any] = {}
    if (
        isinstance(recipe.network, TransformersNetwork)
        and (recipe.network.architecture,) != configuration.architectures
    ):
        changes["architectures"] = [recipe.network.architecture]
    if configuration.architectures and recipe.output.dtype != "source":
        changes["dtype"] = recipe.output.dtype
    return changes
