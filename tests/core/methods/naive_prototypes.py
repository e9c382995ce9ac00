"""One prototype a class, worked out number by number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def naive_prototypes(
    data: tuple[Tensor, Tensor], params: Mapping[str, Any]
) -> tuple[Tensor, Tensor, list[float] | None]:
    """Inputs, targets and weights of one prototype a class, or of all examples."""
    if params.get("kind") == "all":
        return *data, None
    assert params["per_class"] == 1
    inputs, targets = data
    labels = sorted(set(targets.tolist()))
    rows, sizes = [], []
    for label in labels:
        members = [example.tolist() for example in inputs[targets == label].flatten(1)]
        if params["kind"] == "medoid":
            rows.append(min(members, key=lambda member: math.fsum(math.dist(member, other) for other in members)))
        else:
            rows.append([_mean(list(column), params["kind"]) for column in zip(*members, strict=True)])
        sizes.append(float(len(members)))
    made = torch.tensor(rows, dtype=torch.float64).to(inputs.dtype).reshape(-1, *inputs.shape[1:])
    return made, torch.tensor(labels), sizes if params.get("weighted") else None


def _mean(values: list[float], kind: str) -> float:
    mean = math.fsum(values) / len(values)
    if kind in {"arithmetic", "kmeans"}:
        return mean
    magnitude = math.exp(math.fsum(math.log(abs(value) + 1e-8) for value in values) / len(values))
    return 0.0 if mean == 0 else math.copysign(magnitude, mean)
