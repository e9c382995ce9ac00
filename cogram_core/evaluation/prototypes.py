"""Prototypes: a few representative examples of each class that stand for the whole evaluation data."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.cluster.vq import kmeans2

from cogram_core.evaluation.datasets import Dataset
from cogram_core.seeding import generator
from cogram_core.stopping import stop_point

_TINY = 1e-8  # keeps the logarithm of a feature that is zero finite; the paper's value
_ITERATIONS = 50
_AT_ONCE = 5


class PrototypeParams(BaseModel):
    """Which prototypes decisions are taken on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["geometric", "arithmetic", "all"] = Field(
        "geometric", description="mean of a group: geometric (the paper's), arithmetic; all: every example as it is"
    )
    per_class: int = Field(16, ge=1, le=4096, description="groups a class, made by k-means; fewer if examples are few")
    weighted: bool = Field(False, description="each prototype counts as many examples as its group has")


def make_prototypes(dataset: Dataset, params: PrototypeParams, seed: int, stage: int) -> Dataset:
    """The prototypes of ``dataset``, class by class in rising order, groups in order of their first example.

    Args:
        dataset: inputs (N, ...), targets (N,).
        params: kind and count.
        seed: the recipe's.
        stage: the stage's place; with the seed and the class it keys the clustering.

    Returns:
        At most classes × per_class examples; ``weights`` where asked for.
    """
    if params.kind == "all":
        return dataset
    flat = dataset.inputs.flatten(1).double().cpu().numpy()
    targets = dataset.targets.cpu().numpy()
    centres, labels, sizes = [], [], []
    for label in np.unique(targets):
        stop_point()
        members = flat[targets == label]
        for group in _groups(members, params.per_class, generator(seed, stage, "prototypes", int(label))):
            centres.append(_geometric(group) if params.kind == "geometric" else group.mean(axis=0))
            labels.append(int(label))
            sizes.append(len(group))
    inputs = torch.from_numpy(np.stack(centres)).to(dataset.inputs.dtype).reshape(-1, *dataset.inputs.shape[1:])
    weights = torch.tensor(sizes, dtype=torch.float64) if params.weighted else None
    return Dataset(inputs, torch.tensor(labels), weights).to(dataset.inputs.device)


def _groups(members: NDArray[np.float64], count: int, random: np.random.Generator) -> list[NDArray[np.float64]]:
    """k-means with k-means++ starts; groups that stay empty are left out."""
    if count == 1 or len(members) <= count:
        return [members] if count == 1 else [member[None] for member in members]
    distinct, assigned = np.unique(members, axis=0, return_inverse=True)
    if len(distinct) > count:  # else each value is a group, and k-means would look for starts that don't exist
        assigned = _cluster(members, count, random)
    found, first = np.unique(assigned, return_index=True)
    return [members[assigned == group] for group in found[np.argsort(first)]]


def _cluster(members: NDArray[np.float64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """The group of each member, by at most 50 iterations of k-means; a few at a time, so that a run can be stopped."""
    centres: Any = count
    assigned = np.zeros(len(members), dtype=np.int64)
    for part in range(_ITERATIONS // _AT_ONCE):
        stop_point()
        before, minit = centres, "matrix" if part else "++"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)
            centres, assigned = kmeans2(members, centres, iter=_AT_ONCE, minit=minit, missing="warn", rng=random)
        if part and np.array_equal(centres, before):
            break  # nothing moves any more
    return assigned


def _geometric(group: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(mean(log(|x| + 1e-8))) with the sign of the arithmetic mean, feature by feature.

    Source: arXiv:2512.03610, prototype formation.
    """
    magnitude = np.exp(np.log(np.abs(group) + _TINY).mean(axis=0))
    signed: NDArray[np.float64] = np.sign(group.mean(axis=0)) * magnitude
    return signed
