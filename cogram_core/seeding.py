"""Randomness keyed by what it is for, never by schedule or thread."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(seed: int, *keys: str | int) -> np.random.Generator:
    """A generator that depends on ``seed`` and ``keys`` alone: the same on any schedule, thread or machine."""
    text = "/".join(str(key) for key in (seed, *keys))
    return np.random.Generator(np.random.Philox(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")))
