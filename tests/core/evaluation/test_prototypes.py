from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.prototypes import PrototypeParams, make_prototypes
from tests.core.factories import points, random

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
