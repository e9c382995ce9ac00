from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from cogram_core.evaluation import prototypes as module_under_test
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.prototypes import PrototypeParams, decide, make_prototypes
from cogram_core.networks.network import Network
from tests.core.factories import initialise, points, random
from tests.core.methods.naive_prototypes import naive_prototypes

seeds = st.integers(0, 2**31)


def data(seed: int, count: int = 80, shape: tuple[int, ...] = (5,)) -> Dataset:
    inputs, targets = points(seed, count, shape, 3)
    return Dataset(inputs, targets)


def make(dataset: Dataset, seed: int = 0, stage: int = 0, **params: object) -> Dataset:
    return make_prototypes(dataset, PrototypeParams.model_validate(params), seed, stage)


def naive_geometric(rows: list[list[float]]) -> list[float]:
    result = []
    for column in zip(*rows, strict=True):
        magnitude = math.exp(sum(math.log(abs(x) + 1e-8) for x in column) / len(column))
        mean = sum(column) / len(column)
        result.append(0.0 if mean == 0 else math.copysign(magnitude, mean))
    return result


def naive_arithmetic(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(column) for column in zip(*rows, strict=True)]


def rows_of(dataset: Dataset, label: int) -> list[list[float]]:
    result: list[list[float]] = dataset.inputs[dataset.targets == label].flatten(1).double().tolist()
    return result


def cells(members: NDArray[np.float64], centres: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Members by their nearest centre."""
    nearest = np.array([np.argmin([np.sum((member - centre) ** 2) for centre in centres]) for member in members])
    return [members[nearest == place] for place in range(len(centres))]


@settings(deadline=None, max_examples=10)
@given(seeds, st.sampled_from([("geometric", naive_geometric), ("arithmetic", naive_arithmetic)]))
def test_one_prototype_a_class_is_the_mean_of_the_class(seed: int, kind: tuple[str, object]) -> None:
    dataset = data(seed, shape=(2, 3))
    made = make(dataset, kind=kind[0], per_class=1)
    naive = {"geometric": naive_geometric, "arithmetic": naive_arithmetic}[kind[0]]
    assert made.inputs.shape == (3, 2, 3)
    assert made.inputs.dtype == torch.float32
    assert made.targets.tolist() == [0, 1, 2]
    for label in range(3):
        expected = naive(rows_of(dataset, label))
        assert made.inputs[label].flatten().tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_the_geometric_mean_has_the_sign_of_the_arithmetic_one_and_survives_zeros() -> None:
    inputs = torch.tensor([[4.0, -1.0, 0.0, 1.0], [1.0, -4.0, 0.0, -1.0], [-2.0, 2.0, 0.0, 0.0]])
    made = make(Dataset(inputs, torch.zeros(3, dtype=torch.int64)), kind="geometric", per_class=1)
    assert made.inputs[0].tolist() == pytest.approx([2.0, -2.0, 0.0, 0.0], rel=1e-6)


@settings(deadline=None, max_examples=10)
@given(seeds, st.integers(2, 6))
def test_each_of_several_prototypes_is_the_mean_of_the_examples_nearest_to_it(seed: int, count: int) -> None:
    dataset = data(seed)
    made = make(dataset, seed=seed, kind="arithmetic", per_class=count, weighted=True)
    geometric = make(dataset, seed=seed, kind="geometric", per_class=count, weighted=True)
    assert made.weights is not None
    assert geometric.weights is not None
    assert made.weights.tolist() == geometric.weights.tolist()
    for label in range(3):
        members = np.array(rows_of(dataset, label))
        mask = made.targets == label
        groups = cells(members, made.inputs[mask].double().numpy())
        assert [len(group) for group in groups] == made.weights[mask].tolist()
        for group, mean, product in zip(groups, made.inputs[mask], geometric.inputs[mask], strict=True):
            assert mean.tolist() == pytest.approx(naive_arithmetic(group.tolist()), rel=1e-5, abs=1e-6)
            assert product.tolist() == pytest.approx(naive_geometric(group.tolist()), rel=1e-5, abs=1e-6)


@settings(deadline=None, max_examples=10)
@given(seeds, st.integers(1, 20))
def test_weighted_prototypes_keep_the_counts_and_the_mean_of_each_class(seed: int, count: int) -> None:
    dataset = data(seed)
    made = make(dataset, seed=seed, kind="arithmetic", per_class=count, weighted=True)
    assert made.weights is not None
    for label in range(3):
        members, mask = torch.tensor(rows_of(dataset, label)), made.targets == label
        weights = made.weights[mask]
        assert 1 <= int(mask.sum()) <= count
        assert float(weights.sum()) == len(members)
        mean = (made.inputs[mask].double() * weights[:, None]).sum(0) / weights.sum()
        assert mean.tolist() == pytest.approx(members.double().mean(0).tolist(), rel=1e-5, abs=1e-6)


def test_the_same_seed_gives_the_same_prototypes_and_another_seed_or_stage_others() -> None:
    dataset = data(1, 200)
    first = make(dataset, seed=1, per_class=8)
    torch.rand(7)
    np.random.default_rng().random()
    assert torch.equal(make(dataset, seed=1, per_class=8).inputs, first.inputs)
    others = [make(dataset, seed=2, per_class=8), make(dataset, seed=1, stage=1, per_class=8)]
    for other in others:
        assert other.inputs.shape != first.inputs.shape or not torch.equal(other.inputs, first.inputs)


def test_all_gives_every_example_as_it_is() -> None:
    dataset = data(2)
    assert make(dataset, kind="all") is dataset


def test_unweighted_prototypes_carry_no_weights() -> None:
    assert make(data(2), kind="arithmetic").weights is None


def test_a_class_with_fewer_examples_than_groups_keeps_each_of_them() -> None:
    inputs = torch.randn(5, 4, generator=random(0)).abs() + 0.1
    targets = torch.tensor([7, 2, 7, 7, 7])
    made = make(Dataset(inputs, targets), kind="geometric", per_class=16, weighted=True)
    assert made.targets.tolist() == [2, 7, 7, 7, 7]
    assert torch.allclose(made.inputs, inputs[[1, 0, 2, 3, 4]], rtol=1e-6)
    assert made.weights is not None
    assert made.weights.tolist() == [1.0] * 5


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_examples_that_stand_many_times_make_one_prototype_each(distinct: int) -> None:
    values: Tensor = torch.arange(distinct, dtype=torch.float32)[:, None] * torch.tensor([[1.0, -2.0, 3.0]]) + 1.0
    inputs = values.repeat(30, 1)
    made = make(Dataset(inputs, torch.zeros(len(inputs), dtype=torch.int64)), kind="arithmetic", weighted=True)
    assert torch.equal(made.inputs, values)  # in order of their first example
    assert made.weights is not None
    assert made.weights.tolist() == [30.0] * distinct


def test_more_distinct_examples_than_groups_among_many_duplicates_are_clustered() -> None:
    inputs = torch.randn(20, 3, generator=random(5)).repeat(10, 1)
    made = make(Dataset(inputs, torch.zeros(200, dtype=torch.int64)), per_class=16, kind="arithmetic", weighted=True)
    assert made.weights is not None
    assert float(made.weights.sum()) == 200
    assert len(made) <= 16


@settings(deadline=None, max_examples=10)
@given(seeds)
def test_one_medoid_a_class_is_the_example_with_the_least_summed_distance(seed: int) -> None:
    inputs, targets = points(seed, 50, (2, 3), 3)
    made = make(Dataset(inputs, targets), kind="medoid", per_class=1, weighted=True)
    expected, labels, sizes = naive_prototypes((inputs, targets), {"kind": "medoid", "per_class": 1, "weighted": True})
    assert torch.equal(made.inputs, expected)
    assert made.targets.tolist() == labels.tolist()
    assert made.weights is not None
    assert made.weights.tolist() == sizes


@settings(deadline=None, max_examples=10)
@given(seeds, st.integers(2, 6))
def test_each_of_several_medoids_is_its_groups(seed: int, count: int) -> None:
    dataset = data(seed)
    made = make(dataset, seed=seed, kind="medoid", per_class=count, weighted=True)
    centroids = make(dataset, seed=seed, kind="kmeans", per_class=count, weighted=True)
    assert made.weights is not None
    assert centroids.weights is not None
    assert made.weights.tolist() == centroids.weights.tolist()
    for label in range(3):
        mask = made.targets == label
        groups = cells(np.array(rows_of(dataset, label)), centroids.inputs[mask].double().numpy())
        for group, medoid in zip(groups, made.inputs[mask].tolist(), strict=True):
            sums = [math.fsum(math.dist(member, other) for other in group.tolist()) for member in group.tolist()]
            chosen = math.fsum(math.dist(medoid, other) for other in group.tolist())
            assert medoid in group.tolist()
            assert chosen <= min(sums) * (1 + 1e-12)


def test_the_first_of_equal_medoids_is_taken_however_many_distances_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    for inputs, expected in ((corners, corners[0]), (points(0)[0], None)):
        dataset = Dataset(inputs, torch.zeros(len(inputs), dtype=torch.int64))
        whole = make(dataset, kind="medoid", per_class=1).inputs[0]
        monkeypatch.setattr(module_under_test, "_DISTANCES", 7 * len(inputs))
        assert torch.equal(make(dataset, kind="medoid", per_class=1).inputs[0], whole)
        monkeypatch.undo()
        assert expected is None or torch.equal(whole, expected)


def test_kmeans_and_arithmetic_are_two_names_of_one_thing() -> None:
    one, other = (make(data(3), kind=kind, per_class=4, weighted=True) for kind in ("kmeans", "arithmetic"))
    assert torch.equal(one.inputs, other.inputs)


@settings(deadline=None, max_examples=15)
@given(seeds, st.integers(1, 40))
def test_drawn_examples_are_real_different_and_of_every_class(seed: int, count: int) -> None:
    inputs, targets = points(seed, 60, (5,), 3)
    made = make(Dataset(inputs, targets), seed=seed, kind="examples", per_class=count, weighted=True)
    places = [torch.nonzero((inputs == row).all(1))[0, 0].item() for row in made.inputs]
    assert len(set(places)) == len(places)
    assert made.targets.tolist() == targets[places].tolist()
    assert made.weights is not None
    for label in range(3):
        there, mask = int((targets == label).sum()), made.targets == label
        assert int(mask.sum()) == min(there, count)
        assert made.weights[mask].tolist() == pytest.approx([there / min(there, count)] * int(mask.sum()))
        drawn = [place for place, hit in zip(places, mask.tolist(), strict=True) if hit]
        assert drawn == sorted(drawn)


def test_another_seed_draws_other_examples() -> None:
    dataset = data(1, 200)
    first = make(dataset, seed=1, kind="examples")
    assert torch.equal(make(dataset, seed=1, kind="examples").inputs, first.inputs)
    assert not torch.equal(make(dataset, seed=2, kind="examples").inputs, first.inputs)
    assert not torch.equal(make(dataset, seed=1, stage=1, kind="examples").inputs, first.inputs)


@pytest.mark.parametrize("shape", [(40,), (40, 2)])
@pytest.mark.parametrize("kind", ["geometric", "arithmetic"])
def test_a_mean_of_inputs_has_the_mean_of_its_groups_values(kind: str, shape: tuple[int, ...]) -> None:
    inputs, values = torch.randn(40, 3, generator=random(0)), torch.randn(shape, generator=random(1))
    dataset = Dataset(inputs, values)
    (whole,) = make(dataset, kind=kind, per_class=1).targets
    assert whole.tolist() == pytest.approx(values.double().mean(0).tolist(), rel=1e-5)
    made = make(dataset, kind=kind, per_class=5, weighted=True)
    assert made.loss == "mean_squared_error"
    assert made.weights is not None
    # Groups are made of all examples together: their weighted mean is the mean of all.
    weights = made.weights.reshape(-1, *[1] * (values.ndim - 1))
    mean = (made.targets.double() * weights).sum(0) / 40
    assert mean.tolist() == pytest.approx(values.double().mean(0).tolist(), rel=1e-4, abs=1e-6)
    assert len(made) == 5


class Reader(nn.Module):
    """Token scores by way of an embedding of the tokens and one of their places."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.places = nn.Embedding(6, 3)
        self.tokens = nn.Embedding(9, 3)
        self.head = nn.Linear(3, classes)

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.head(self.places(torch.arange(ids.shape[1], device=ids.device)) + self.tokens(ids))
        return result


def sentences(count: int, seed: int = 0) -> tuple[Dataset, Network]:
    ids = torch.randint(0, 9, (count, 6), generator=random(seed))
    labels = torch.where(torch.rand(count, 6, generator=random(seed + 1)) < 0.3, -100, ids)
    labels[:, -1] = ids[:, -1]
    network = Network(initialise(Reader(9), seed), ids[:1])
    return Dataset(ids, labels), network


def test_the_medoid_of_token_data_lies_in_the_middle_of_mean_embeddings() -> None:
    dataset, network = sentences(25)
    made = make_prototypes(dataset, PrototypeParams(kind="medoid", per_class=1, weighted=True), 0, 0, network)
    table = network.tensor("tokens.weight").double().tolist()
    where = [
        [math.fsum(table[token][at] for token in sentence) / 6 for at in range(3)]
        for sentence in dataset.inputs.tolist()
    ]
    sums = [math.fsum(math.dist(one, other) for other in where) for one in where]
    best = sums.index(min(sums))
    assert made.inputs.tolist() == [dataset.inputs[best].tolist()]
    assert made.targets.tolist() == [dataset.targets[best].tolist()]
    assert made.weights is not None
    tokens = sum(label != -100 for label in dataset.targets[best, 1:].tolist())
    assert made.weights.tolist() == [25.0 * tokens]


@pytest.mark.parametrize("kind", ["medoid", "examples", "auto"])
def test_prototypes_of_token_data_are_real_and_weigh_their_tokens(kind: str) -> None:
    dataset, network = sentences(40)
    params = PrototypeParams.model_validate({"kind": kind, "per_class": 7})
    made = make_prototypes(dataset, params, 0, 0, network)
    assert made.loss == "causal_lm"
    assert made.inputs.dtype == torch.int64
    assert 1 <= len(made) <= 7
    rows, known = (torch.cat([part.inputs, part.targets], 1).tolist() for part in (made, dataset))
    assert all(row in known for row in rows)
    assert made.weights is not None
    assert made.weights.tolist() == [float(sum(label != -100 for label in row[1:])) for row in made.targets.tolist()]


def test_classes_of_token_data_have_medoids_of_their_own() -> None:
    ids = torch.randint(0, 9, (30, 6), generator=random(0))
    targets = torch.randint(0, 3, (30,), generator=random(1))
    network = Network(initialise(Reader(3), 0), ids[:1])
    made = make_prototypes(Dataset(ids, targets), PrototypeParams(kind="medoid", per_class=1), 0, 0, network)
    assert made.targets.tolist() == [0, 1, 2]
    assert made.weights is None
    for sentence, label in zip(made.inputs, made.targets, strict=True):
        assert sentence.tolist() in ids[targets == label].tolist()


def test_what_is_left_open_is_decided_by_the_data() -> None:
    for params, tokens, kind, count in (
        (PrototypeParams(), False, "all", None),
        (PrototypeParams(), True, "all", None),
        (PrototypeParams(per_class=3), False, "geometric", 3),
        (PrototypeParams(per_class=3), True, "examples", 3),
        (PrototypeParams(kind="medoid"), True, "medoid", 16),
    ):
        decided = decide(params, tokens)
        assert (decided.kind, decided.per_class) == (kind, count)
        assert decide(decided, tokens) == decided
    dataset = data(4)
    made = make(dataset, per_class=None)
    assert torch.equal(made.inputs, dataset.inputs)
    assert torch.equal(made.targets, dataset.targets)
    assert torch.equal(make(dataset, per_class=2).inputs, make(dataset, kind="geometric", per_class=2).inputs)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**30), clumps=st.integers(2, 9))
def test_clustering_starts_in_every_clump_that_lies_far_from_the_others(seed: int, clumps: int) -> None:
    chance = np.random.default_rng(seed)
    centres = 1e6 * np.eye(clumps)
    members = np.repeat(centres, 20, axis=0) + chance.normal(size=(20 * clumps, clumps))
    starts = module_under_test._starts(members, clumps, chance)
    assert sorted(starts.argmax(axis=1).tolist()) == list(range(clumps))


def test_clustering_starts_are_different_members_however_many_are_alike() -> None:
    members = np.array([[0.0]] * 50 + [[1e-200], [2.0], [3.0]])
    for seed in range(10):
        starts = module_under_test._starts(members, 3, np.random.default_rng(seed))
        assert len(np.unique(starts)) == 3
