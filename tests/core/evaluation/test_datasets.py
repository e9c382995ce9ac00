from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cogram_core.errors import DatasetError
from cogram_core.evaluation.datasets import Dataset, check_outputs, make_dataset, read_dataset
from cogram_core.networks.tokens import Tokens
from tests.core.factories import random


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 400))
def test_examples_are_drawn_evenly_over_the_whole(total: int, count: int) -> None:
    dataset = Dataset(torch.arange(total, dtype=torch.float32)[:, None], torch.arange(total))
    places = dataset.evenly(count).targets.tolist()
    assert len(places) == min(total, count)
    assert len(set(places)) == len(places)
    assert places == sorted(places)
    steps = [high - low for low, high in zip(places, [*places[1:], total], strict=True)]
    assert max(steps) - min(steps) <= 1
    assert dataset.evenly(count).inputs[:, 0].tolist() == places


def test_a_data_file_is_read_in_the_dtype_of_the_run(tmp_path: Path) -> None:
    inputs, targets = torch.randint(0, 255, (4, 3), dtype=torch.uint8), torch.tensor([0, 1, 2, 1], dtype=torch.int32)
    save_file({"inputs": inputs, "targets": targets}, tmp_path / "data.safetensors")
    dataset = read_dataset(tmp_path / "data.safetensors", torch.float64)
    assert dataset.inputs.dtype == torch.float64
    assert torch.equal(dataset.inputs, inputs.double())
    assert dataset.targets.dtype == torch.int64
    assert dataset.targets.tolist() == [0, 1, 2, 1]


ONES = torch.ones(3, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("inputs", "targets", "code"),
    [
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool), ": targets: dataset.invalid_targets"),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), ": targets: dataset.invalid_targets"),
        (ONES, ONES[:, :3], ": targets: dataset.invalid_targets"),
        (ONES[:, :1], ONES[:, :1], ": targets: dataset.invalid_targets"),
        (torch.zeros(3, 2), torch.zeros(3, 0), ": targets: dataset.invalid_targets"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), ": inputs: dataset.invalid_inputs"),
        (torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), ": dataset.length_mismatch"),
        (torch.zeros(3, 2), torch.zeros(4, 2), ": dataset.length_mismatch"),
        (ONES, ONES[:2], ": dataset.length_mismatch"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), ": dataset.length_mismatch"),
        (torch.tensor([[1.0, torch.nan]]), torch.zeros(1, dtype=torch.int64), ": inputs: dataset.not_finite"),
        (torch.tensor([[1e300]], dtype=torch.float64), torch.zeros(1), ": inputs: dataset.not_finite"),
        (torch.zeros(2, 2), torch.tensor([1.0, torch.inf]), ": targets: dataset.not_finite"),
        (ONES, torch.tensor([[1, 1, 1, 1], [1, -100, -100, -100], [-100] * 4]), ": targets: dataset.nothing_predicted"),
    ],
)
def test_tensors_that_are_no_dataset_are_refused(inputs: torch.Tensor, targets: torch.Tensor, code: str) -> None:
    with pytest.raises(DatasetError) as caught:
        make_dataset(inputs, targets, torch.float32, "data")
    assert [f"{problem.location}: {problem.code}" for problem in caught.value.problems] == [f"data{code}"]


def test_the_targets_decide_on_the_loss() -> None:
    ids = torch.randint(0, 9, (5, 4), generator=random(0))
    for inputs, targets, loss in (
        (torch.zeros(5, 2), torch.zeros(5, dtype=torch.uint8), "cross_entropy"),
        (ids, torch.zeros(5, dtype=torch.int32), "cross_entropy"),
        (torch.zeros(5, 2), torch.zeros(5, dtype=torch.float64), "mean_squared_error"),
        (torch.zeros(5, 2), torch.zeros(5, 3, 2), "mean_squared_error"),
        (ids, ids, "causal_lm"),
    ):
        made = make_dataset(inputs, targets, torch.float32, "data")
        assert made.loss == loss
        assert made.targets.dtype == (torch.float32 if loss == "mean_squared_error" else torch.int64)


def test_token_ids_stay_integers_and_are_held_against_the_vocabulary() -> None:
    ids = torch.tensor([[0, 3], [7, 2]], dtype=torch.int32)
    made = make_dataset(ids, torch.tensor([0, 1]), torch.float32, "data", Tokens(8))
    assert made.inputs.dtype == torch.int64
    assert torch.equal(made.inputs, ids)
    for shifted in (ids + 1, ids - 1):
        with pytest.raises(DatasetError, match="ids 0 to 7") as caught:
            make_dataset(shifted, torch.tensor([0, 1]), torch.float32, "data", Tokens(8))
        assert [problem.code for problem in caught.value.problems] == ["dataset.tokens_outside_vocabulary"]
    with pytest.raises(DatasetError, match="begins with an embedding"):
        make_dataset(ids.float(), torch.tensor([0, 1]), torch.float32, "data", Tokens(8))


def test_a_sequence_weighs_as_many_tokens_as_it_predicts() -> None:
    labels = torch.tensor([[5, 1, 2, 3], [5, -100, 2, -100], [-100, -100, -100, 1]])
    made = make_dataset(labels.clamp(min=0), labels, torch.float32, "data", Tokens(6))
    assert made.weights is not None
    assert made.weights.tolist() == [3.0, 1.0, 1.0]
    assert made.weights.dtype == torch.float64
    part = made.take(torch.tensor([2, 0]))
    assert part.weights is not None
    assert part.weights.tolist() == [1.0, 3.0]
    assert part.targets.tolist() == labels[[2, 0]].tolist()


def test_a_file_of_token_data_is_read_as_tokens(tmp_path: Path) -> None:
    ids = torch.randint(0, 9, (3, 5), generator=random(1), dtype=torch.int32)
    mask = torch.ones(3, 5, dtype=torch.bool)
    save_file({"input_ids": ids, "labels": ids.long(), "attention_mask": mask}, tmp_path / "data.safetensors")
    made = read_dataset(tmp_path / "data.safetensors", torch.float32, "here")
    assert made.loss == "causal_lm"
    assert made.inputs.dtype == torch.int64
    assert torch.equal(made.inputs, ids)
    with pytest.raises(DatasetError, match="here: input_ids: reach from"):
        read_dataset(tmp_path / "data.safetensors", torch.float32, "here", Tokens(int(ids.max())))


def test_outputs_are_held_against_what_the_targets_ask_for() -> None:
    ids = torch.tensor([[0, 1, 2], [2, 1, -100]])
    sequences = Dataset(ids.clamp(min=0), ids)
    values = Dataset(torch.zeros(2, 3), torch.zeros(2, 3))
    single = Dataset(torch.zeros(2, 3), torch.zeros(2))
    classes = Dataset(torch.zeros(2, 3), torch.tensor([0, 3]))
    for dataset, good, bad in (
        (sequences, [(3, 3), (3, 50)], [(3, 2), (2, 3), (3,), (), (3, 3, 3)]),
        (values, [(3,)], [(4,), (), (3, 1), (1, 3)]),
        (single, [(), (1,)], [(2,), (1, 1)]),
        (classes, [(4,), (9,)], [(3,), (4, 4), ()]),
    ):
        assert [check_outputs(dataset, shape, "data") for shape in good] == [[]] * len(good)
        for shape in bad:
            (problem,) = check_outputs(dataset, shape, "data")
            assert problem.location in {"data: targets", "data: labels"}
