"""Tensors that a row of the trace can't carry: told before anything is computed, for the trace is written last."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from cogram_core.errors import Problem
from cogram_core.recipe.document import Recipe, Stage
from cogram_core.recipe.layers import Shape
from cogram_core.recipe.methods import catalogue

MAX_PAYLOAD = 2**31 - 2**24
"""Bytes that a row may carry: it has to fit into a page of Parquet, less than 2 GiB with what that and zstd add."""
_SOLVING = ("regmean", "chain_of_merges", "repair")


def payload_bytes(recipe: Recipe, stage: Stage) -> int:
    """Bytes that a row of a stage carries for each element of its tensor: Fisher's shares, or values."""
    shares = 2 * (len(recipe.sources) - 1)
    if stage.method == "fisher":
        return shares
    if stage.method in _SOLVING or catalogue()[stage.method].kind == "training":
        values = 8 if recipe.compute_dtype == "float64" else 4
        return max(values, shares) if stage.parameters.get("rest") == "fisher" else values
    return 0


def payload_problems(recipe: Recipe, shapes: Mapping[str, Shape]) -> Iterator[Problem]:
    """Tensors that are too large for a stage; ``shapes`` has the floating ones of a source."""
    for place, stage in enumerate(recipe.stages):
        each = payload_bytes(recipe, stage)
        what, remedy = ("shares", "take linear, or fuse fewer sources at a time")
        if stage.method != "fisher":
            what, remedy = ("values", "take the stage out, or compute_dtype: float32 where it is float64")
        for name, shape in shapes.items():
            if (needed := each * math.prod(shape)) > MAX_PAYLOAD:
                message = f"its {what} would take {needed:,} bytes in the trace, a row of which holds {MAX_PAYLOAD:,}"
                yield Problem(f"stages[{place}]: {name}", "recipe.too_large_for_trace", f"{message}; {remedy}")
