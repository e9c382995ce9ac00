"""Measured results on disk, each under a digest of the code that it depends on, and of what was asked."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

Question = Mapping[str, Any]
"""What is to be measured, as plain data."""
Answer = dict[str, Any]
"""What was found, as plain data."""

_ROOT = Path(__file__).resolve().parents[2]
KEPT = _ROOT / ".cache" / "bench-paper"
_MEASURED_BY = ("cogram_core/**/*.py", "cogram_core/**/*.[ch]", "bench/tasks.py", "bench/paper/measuring.py")


@cache
def _version() -> str:
    """A digest of the code that results depend on, as it was when this process first asked."""
    digest = hashlib.sha256(torch.__version__.encode())
    for pattern in _MEASURED_BY:
        for path in sorted(_ROOT.glob(pattern)):
            digest.update(path.relative_to(_ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def answer(measure: Callable[[Question], Answer], question: Question, folder: Path = KEPT) -> Answer:
    """What ``measure`` finds, or has found before: the same question to the same code is measured once."""
    asked = json.dumps({"measure": measure.__name__, **question}, sort_keys=True)
    name = hashlib.sha256(asked.encode()).hexdigest()[:24]
    kept = folder / _version() / f"{name}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text())["answer"])
    found = measure(question)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}")  # appears whole, whenever the run is stopped
    part.write_text(json.dumps({"question": json.loads(asked), "answer": found}, indent=1))
    part.rename(kept)
    return found
