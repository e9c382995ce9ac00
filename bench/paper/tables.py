"""Markdown tables of figures over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation over seeds."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def differences(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Seed by seed."""
    return [value - other for value, other in zip(values, others, strict=True)]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean; 0 for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def paired(values: Sequence[float], others: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard error of the difference seed by seed, and the worst seed's."""
    found = differences(values, others)
    mean = f"{statistics.fmean(found):+.{digits}f}"
    if len(found) == 1:
        return mean
    return f"{mean} ± {standard_error(found):.{digits}f} ({min(found):+.1f})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; ``head`` names the columns."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
