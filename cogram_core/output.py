"""Writes a run's checkpoint: dtypes, shards, and the files that are carried over from the first source."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cogram_core.checkpoints.torch_dtypes import DTYPE_NAMES
from cogram_core.checkpoints.writer import CheckpointWriter, TensorLayout
from cogram_core.errors import InvalidInput, Problem
from cogram_core.recipe import Recipe
from cogram_core.sources import TensorStore, finite
from cogram_core.stopping import stop_point

# Small files that say how to use the tensors; everything else in a source's folder stays there.
_CARRIED = (
    "config.json",
    "network.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
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


def carry_over(source: Path, folder: Path) -> None:
    """Copies the first source's configuration and tokenizer files beside the tensors."""
    if not source.is_dir():
        return
    for name in _CARRIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
