from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from cogram_core.errors import DatasetError
from cogram_core.evaluation.datasets import Dataset, make_dataset, read_dataset


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


@pytest.mark.parametrize(
    ("inputs", "targets", "code"),
    [
        (torch.zeros(3, 2), torch.zeros(3), "dataset.invalid_targets"),
        (torch.zeros(3, 2), torch.zeros(3, 1, dtype=torch.int64), "dataset.invalid_targets"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), "dataset.invalid_inputs"),
        (torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), "dataset.length_mismatch"),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), "dataset.length_mismatch"),
        (torch.tensor([[1.0, torch.nan]]), torch.zeros(1, dtype=torch.int64), "dataset.not_finite"),
        (torch.tensor([[1e300]], dtype=torch.float64), torch.zeros(1, dtype=torch.int64), "dataset.not_finite"),
    ],
)
def test_tensors_that_are_no_dataset_are_refused(inputs: torch.Tensor, targets: torch.Tensor, code: str) -> None:
    with pytest.raises(DatasetError) as caught:
        make_dataset(inputs, targets, torch.float32, "data")
    assert [problem.code for problem in caught.value.problems] == [code]
