"""Which share of one dataset's examples stands in another."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cogram_core.evaluation.datasets import Dataset
from cogram_core.overlap import shared_part

_examples = st.lists(st.tuples(st.integers(-1, 1), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=9)


def as_dataset(examples: list[tuple[int, int, int]]) -> Dataset:
    table = torch.tensor(examples)
    return Dataset(table[:, :2].float(), table[:, 2])


@settings(deadline=None)
@given(one=_examples, other=_examples)
def test_it_is_what_sets_of_tuples_say(one: list[tuple[int, int, int]], other: list[tuple[int, int, int]]) -> None:
    expected = sum(example in set(other) for example in one) / len(one)
    assert shared_part(as_dataset(one), as_dataset(other)) == expected


def random(count: int, seed: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 2, generator=source), torch.randint(4, (count,), generator=source)


def test_order_and_parts_don_t_matter_over_many_examples() -> None:
    inputs, targets = random(3000, 1)
    whole = Dataset(inputs, targets)
    assert shared_part(whole.take(torch.randperm(3000)), whole) == 1
    assert shared_part(whole, whole.take(torch.arange(0, 3000, 3))) == 1000 / 3000
    assert shared_part(whole, Dataset(*random(3000, 2))) == 0


def test_an_example_is_its_inputs_with_its_target() -> None:
    inputs, targets = random(8, 3)
    assert shared_part(Dataset(inputs, targets), Dataset(inputs, targets + 1)) == 0
    values = torch.randn(8, 2)
    assert shared_part(Dataset(inputs, values), Dataset(inputs.flip(0), values.flip(0))) == 1


def test_equal_numbers_are_equal_whatever_their_sign() -> None:
    zeros, targets = torch.zeros(2, 3), torch.tensor([0, 1])
    assert shared_part(Dataset(zeros, targets), Dataset(-zeros, targets)) == 1
