"""Prototypes: a few representative examples of each class that stand for the whole evaluation data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist

from cogram_core.evaluation.datasets import Dataset
from cogram_core.networks.network import Network
from cogram_core.networks.packing import unpack
from cogram_core.networks.tokens import embedding_of
from cogram_core.seeding import generator
from cogram_core.stopping import stop_point

Kind = Literal["geometric", "arithmetic", "kmeans", "medoid", "examples", "all"]
_TINY = 1e-8  # keeps the logarithm of a feature that is zero finite; the paper's value
_ITERATIONS = 50
_PER_CLASS = 16
_AT_ONCE = 5
_WORK_AT_ONCE = 10**9  # distances times features between two stop points: about a second
_DISTANCES = 2**20  # held at once, and between two looks at whether to stop


class PrototypeParams(BaseModel):
    """Which prototypes decisions are taken on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind | Literal["auto"] = Field(
        "auto",
        description="what stands for a group: geometric (the paper's) or arithmetic mean; kmeans, the centroid, which is "
        "the arithmetic mean by its other name; medoid, the example with the least summed distance; examples: drawn from "
        "each class, not grouped; all: every example; auto: all, but where per_class is given, geometric, and for token "
        "data, for tokens have no mean, examples",
    )
    per_class: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None,
        description="groups a class, made by k-means; fewer if examples are few; data without classes (values, labels of "
        "tokens) is one class; null: 16 for a kind that needs a number",
    )
    weighted: bool = Field(False, description="each prototype counts as many examples as its group has")


def decide(params: PrototypeParams, tokens: bool) -> PrototypeParams:
    """``params`` with what was left open decided: no ``auto``, and a number for every kind but ``all``."""
    kind, count = params.kind, params.per_class
    if kind == "auto" and count is None:
        kind = "all"
    elif kind == "auto":
        kind = "examples" if tokens else "geometric"
    return params.model_copy(update={"kind": kind, "per_class": None if kind == "all" else count or _PER_CLASS})


def make_prototypes(
    dataset: Dataset, params: PrototypeParams, seed: int, stage: int, network: Network | None = None
) -> Dataset:
    """The prototypes of ``dataset``, class by class in rising order, groups in order of their first example.

    Groups and medoids go by the Euclidean distance of inputs; of token ids by that of their mean embedding: the network's
    embedding of the inputs as it stands, averaged over a sequence's places that are no padding. Values and labels of
    tokens make no classes: all examples are one. A mean of inputs has the arithmetic mean of its group's values as its
    target.

    Args:
        dataset: inputs (N, ...), targets of any kind.
        params: kind and count.
        seed: the recipe's.
        stage: the stage's place; with the seed and the class it keys the clustering and the drawing.
        network: needed for medoids of token data.

    Returns:
        Every example, or at most classes × per_class; ``weights`` where asked for, times the dataset's own if it has any.
    """
    decided = decide(params, dataset.holds_tokens)
    kind, count = decided.kind, decided.per_class
    if count is None:
        return dataset
    classes = np.zeros(len(dataset), dtype=np.int64)
    if dataset.loss == "cross_entropy":
        classes = dataset.targets.cpu().numpy()
    drawn = {int(label): np.flatnonzero(classes == label) for label in np.unique(classes)}
    randoms = {label: generator(seed, stage, "prototypes", label) for label in drawn}
    if kind == "examples":
        chosen = {label: _draw(members, count, randoms[label]) for label, members in drawn.items()}
        shares = [len(drawn[label]) / len(places) for label, places in chosen.items() for _ in places]
        return _taken(dataset, np.concatenate(list(chosen.values())), shares if params.weighted else None)
    points = _points(dataset, network)
    groups: list[NDArray[np.int64]] = []
    for label, members in drawn.items():
        stop_point()
        groups += [members[group] for group in _groups(points[members], count, randoms[label])]
    sizes = [float(len(group)) for group in groups] if params.weighted else None
    if kind == "medoid":
        return _taken(dataset, np.array([group[_medoid(points[group])] for group in groups]), sizes)
    return _means(dataset, [(points[group], group) for group in groups], _MEANS[kind], sizes)


def _draw(members: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    return np.sort(random.permutation(members)[:count])


def _points(dataset: Dataset, network: Network | None) -> NDArray[np.float64]:
    """Where each example lies, (N, D)."""
    if not dataset.holds_tokens:
        flat: NDArray[np.float64] = dataset.inputs.flatten(1).double().cpu().numpy()
        return flat
    embedding = None if network is None else embedding_of(network.module, dataset.inputs)
    if embedding is None:
        raise ValueError("medoids of token data need a network whose embedding the inputs reach")
    pooled = []
    with torch.no_grad():
        for batch in torch.split(dataset.inputs, 64):
            stop_point()
            ids, mask, _ = unpack(batch, 0)
            present = mask.double().flatten(1)  # (B, T)
            vectors = embedding(ids).double().flatten(1, -2)  # (B, T, D)
            pooled.append((vectors * present[..., None]).sum(dim=1) / present.sum(dim=1, keepdim=True))  # (B, D)
    found: NDArray[np.float64] = torch.cat(pooled).cpu().numpy()
    return found


def _medoid(points: NDArray[np.float64]) -> int:
    """The place of the point with the least summed Euclidean distance to all others; the first of equals."""
    step = max(1, _DISTANCES // len(points))
    sums = []
    for first in range(0, len(points), step):
        stop_point()
        sums.append(cdist(points[first : first + step], points).sum(axis=1))
    return int(np.argmin(np.concatenate(sums)))


def _taken(dataset: Dataset, places: NDArray[np.int64], sizes: Sequence[float] | None) -> Dataset:
    """Real examples, with their group's size as a weight."""
    made = dataset.take(torch.from_numpy(places).to(dataset.targets.device))
    if sizes is None:
        return made
    weights = torch.tensor(sizes, dtype=torch.float64, device=made.targets.device)
    return Dataset(made.inputs, made.targets, weights if made.weights is None else weights * made.weights)


def _means(
    dataset: Dataset,
    groups: Sequence[tuple[NDArray[np.float64], NDArray[np.int64]]],
    mean: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    sizes: Sequence[float] | None,
) -> Dataset:
    centres = np.stack([mean(members) for members, _ in groups])
    inputs = torch.from_numpy(centres).to(dataset.inputs.dtype).reshape(-1, *dataset.inputs.shape[1:])
    given = dataset.targets.cpu()
    if dataset.loss == "cross_entropy":
        targets = given[[places[0] for _, places in groups]]
    else:
        targets = torch.stack([given[places].double().mean(dim=0) for _, places in groups]).to(given.dtype)
    weights = None if sizes is None else torch.tensor(sizes, dtype=torch.float64)
    return Dataset(inputs, targets, weights).to(dataset.targets.device)


def _groups(members: NDArray[np.float64], count: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
    """Places of members, group by group: k-means with k-means++ starts; groups that stay empty are left out."""
    if count == 1:
        return [np.arange(len(members))]
    if len(members) <= count:
        return list(np.arange(len(members))[:, None])
    distinct, assigned = np.unique(members, axis=0, return_inverse=True)
    if len(distinct) > count:  # else each value is a group, and k-means would look for starts that don't exist
        assigned = _cluster(members, count, random)
    found, first = np.unique(assigned, return_index=True)
    return [np.flatnonzero(assigned == group) for group in found[np.argsort(first)]]


def _cluster(members: NDArray[np.float64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """The group of each member, by at most 50 iterations of k-means; a few at a time, so that a run can be stopped."""
    centres = _starts(members, count, random)
    assigned = np.zeros(len(members), dtype=np.int64)
    at_once = max(1, min(_AT_ONCE, _WORK_AT_ONCE // (members.size * count)))
    for _ in range(_ITERATIONS // at_once):
        stop_point()
        before = centres
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "One of the clusters is empty", UserWarning)
            centres, assigned = kmeans2(members, centres, iter=at_once, minit="matrix", missing="warn")
        if np.array_equal(centres, before):
            break  # nothing moves any more
    return assigned


def _starts(members: NDArray[np.float64], count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """``count`` different members (count, D), each with a chance that grows with its squared distance to those before.

    The distances to the nearest one are kept, so that the work grows with count and not with its square.

    Source: Arthur & Vassilvitskii 2007, k-means++.
    """
    chosen = [int(random.integers(len(members)))]
    nearest = np.full(len(members), np.inf)
    while len(chosen) < count:
        stop_point()
        nearest = np.minimum(nearest, np.square(members - members[chosen[-1]]).sum(axis=1))
        running = np.cumsum(nearest)
        # Where the sum overflows or is too small to tell, any member that is not there yet will do.
        drawn = random.random() * running[-1]
        place = int(np.searchsorted(running, drawn, side="right")) if np.isfinite(drawn) else len(members)
        chosen.append(place if place < len(members) and nearest[place] > 0 else int(nearest.argmax()))
    return members[chosen]


def _geometric(group: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(mean(log(|x| + 1e-8))) with the sign of the arithmetic mean, feature by feature.

    Source: arXiv:2512.03610, prototype formation.
    """
    magnitude = np.exp(np.log(np.abs(group) + _TINY).mean(axis=0))
    signed: NDArray[np.float64] = np.sign(group.mean(axis=0)) * magnitude
    return signed


def _arithmetic(group: NDArray[np.float64]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = group.mean(axis=0)
    return mean


_MEANS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "geometric": _geometric,
    "arithmetic": _arithmetic,
    "kmeans": _arithmetic,
}
