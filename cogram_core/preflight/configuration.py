"""What a checkpoint's ``config.json`` says of a network of the transformers library; read as any stranger's JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogram_core.checkpoints.opening import open_regular, read_exactly
from cogram_core.checkpoints.strict_json import Bounds, Malformed, parse_json
from cogram_core.recipe.methods import catalogue

CONFIG_FILE = "config.json"
_MAX_BYTES = 2**22
# Names of 20,000 classes, each way, are the most that one was seen to hold.
_BOUNDS = Bounds(depth=16, objects=10_000, arrays=10_000, strings=200_000, commas=200_000)


@dataclass(frozen=True)
class Configuration:
    """A configuration's architectures, and what else can be told of it without its library; None: it doesn't say."""

    architectures: tuple[str, ...]
    vocabulary: int | None = None
    labels: int | None = None
    quantized: bool = False


def read_configuration(location: Path | Mapping[str, Path]) -> tuple[Configuration | None, str]:
    """The configuration beside a checkpoint's tensors, or None and why there is none that can be used.

    What it says of code that lies elsewhere (``auto_map``) is not looked at, here or later.
    """
    if isinstance(location, Path):
        found: Path | None = location / CONFIG_FILE
    else:
        found = location.get(CONFIG_FILE)
    if found is None or not found.is_file():
        return None, f"there is no {CONFIG_FILE} beside the tensors"
    try:
        document = parse_json(_read(found), _BOUNDS)
    except Malformed as error:
        return None, f"{CONFIG_FILE} {error.message}"
    except OSError as error:
        return None, f"{CONFIG_FILE} can't be read ({error.strerror})"
    if not isinstance(document, dict):
        return None, f"{CONFIG_FILE} is no JSON object"
    return _configuration(document)


def _configuration(document: Mapping[str, Any]) -> tuple[Configuration | None, str]:
    named = document.get("architectures")
    names = named if isinstance(named, list) else []
    labels, count = document.get("id2label"), document.get("num_labels")
    vocabulary = document.get("vocab_size")
    return Configuration(
        architectures=tuple(name for name in names if isinstance(name, str)),
        vocabulary=vocabulary if isinstance(vocabulary, int) else None,
        labels=len(labels) if isinstance(labels, dict) else count if isinstance(count, int) else None,
        quantized=document.get("quantization_config") is not None,
    ), ""


def _read(path: Path) -> bytes:
    descriptor, size = open_regular(path)
    try:
        if size > _MAX_BYTES:
            raise Malformed("too_large", f"has {size} bytes, more than {_MAX_BYTES}; is it a network's configuration?")
        return read_exactly(descriptor, size)
    finally:
        os.close(descriptor)


def what_remains() -> str:
    """Which stages a recipe may still have where nothing can run forward, in words."""
    names = ", ".join(name for name, entry in catalogue().items() if entry.per_tensor)
    return f"without a network that runs, the methods {names} remain, with guard: off"
