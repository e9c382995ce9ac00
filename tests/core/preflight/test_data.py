from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from cogram_core.errors import CheckpointError, DatasetError
from cogram_core.preflight import DatasetFacts, read_dataset_facts

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64]


def written(folder: Path, **tensors: Tensor) -> Path:
    save_file(tensors, folder / "data.safetensors")
    return folder / "data.safetensors"


@pytest.mark.parametrize("dtype", INTEGERS)
def test_the_facts_are_those_of_the_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    targets = torch.tensor([low, 0, high], dtype=torch.int64).to(dtype)
    path = written(tmp_path, inputs=torch.zeros(3, 2, 4), targets=targets)
    assert read_dataset_facts(path) == DatasetFacts(3, (2, 4), low, high)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_the_range_of_the_targets_is_found_in_any_order(tmp_path: Path, values: list[int]) -> None:
    path = written(tmp_path, inputs=torch.zeros(len(values), 1), targets=torch.tensor(values))
    facts = read_dataset_facts(path)
    assert (facts.target_min, facts.target_max) == (min(values), max(values))


def test_targets_larger_than_one_piece_are_read_to_the_end(tmp_path: Path) -> None:
    targets = torch.zeros(300_000, dtype=torch.int64)
    targets[-1], targets[150_000] = 7, -3
    path = written(tmp_path, inputs=torch.zeros(300_000, 1, dtype=torch.uint8), targets=targets)
    assert read_dataset_facts(path) == DatasetFacts(300_000, (1,), -3, 7)


def refusal(path: Path) -> dict[str, str]:
    with pytest.raises(DatasetError) as caught:
        read_dataset_facts(path)
    return {problem.location: problem.code for problem in caught.value.problems}


def test_missing_tensors_are_all_named(tmp_path: Path) -> None:
    path = written(tmp_path, images=torch.zeros(3, 2))
    with pytest.raises(DatasetError) as caught:
        read_dataset_facts(path)
    assert [problem.code for problem in caught.value.problems] == ["dataset.missing_tensor"] * 2
    assert "'inputs'" in str(caught.value)
    assert "'targets'" in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "targets", "codes"),
    [
        (torch.zeros(3, 2), torch.zeros(4, dtype=torch.int64), {"": "length_mismatch"}),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), {"": "length_mismatch"}),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.uint8), {": targets": "invalid_targets"}),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), {": targets": "invalid_targets"}),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool), {": targets": "invalid_targets"}),
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), {": inputs": "invalid_inputs"}),
        (torch.zeros(3, 2, dtype=torch.bool), torch.zeros(3, dtype=torch.int64), {": inputs": "invalid_inputs"}),
        (torch.tensor(1.0), torch.tensor(1.0), {": inputs": "invalid_inputs", ": targets": "invalid_targets"}),
    ],
)
def test_tensors_that_are_no_dataset_are_refused(
    tmp_path: Path, inputs: Tensor, targets: Tensor, codes: dict[str, str]
) -> None:
    path = written(tmp_path, inputs=inputs, targets=targets)
    assert refusal(path) == {f"data.safetensors{place}": f"dataset.{code}" for place, code in codes.items()}


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_floating_targets_are_values(tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    path = written(tmp_path, inputs=torch.zeros(3, 2), targets=torch.zeros(shape, dtype=dtype))
    assert read_dataset_facts(path) == DatasetFacts(3, (2,), None, None, "mean_squared_error", shape[1:])


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_token_data_tells_its_ids_and_labels(tmp_path: Path, dtype: torch.dtype) -> None:
    ids = torch.tensor([[4, 2, 9], [3, 3, 3]], dtype=dtype)
    labels = torch.tensor([[-100, 2, 9], [5, -100, 3]], dtype=dtype)
    facts = read_dataset_facts(written(tmp_path, input_ids=ids, labels=labels))
    assert facts == DatasetFacts(2, (3,), 2, 9, "causal_lm", (3,), token_min=2, token_max=9)
    one_each = read_dataset_facts(written(tmp_path, input_ids=ids, labels=torch.tensor([0, 4], dtype=dtype)))
    assert one_each == DatasetFacts(2, (3,), 0, 4, "cross_entropy", (), token_min=2, token_max=9)
    plain = read_dataset_facts(written(tmp_path, inputs=ids, targets=labels))
    assert plain == DatasetFacts(2, (3,), 2, 9, "causal_lm", (3,))


def test_minus_a_hundred_is_a_class_where_targets_are_classes(tmp_path: Path) -> None:
    path = written(tmp_path, inputs=torch.zeros(2, 1), targets=torch.tensor([-100, 3]))
    assert read_dataset_facts(path).target_min == -100


IDS = torch.arange(6).reshape(2, 3)


@pytest.mark.parametrize(
    ("tensors", "codes"),
    [
        ({"input_ids": IDS}, {"": "missing_tensor"}),
        ({"labels": IDS}, {"": "missing_tensor"}),
        ({"input_ids": IDS, "labels": IDS, "inputs": IDS}, {"": "ambiguous"}),
        ({"input_ids": IDS.float(), "labels": IDS}, {": input_ids": "invalid_inputs", ": labels": "invalid_targets"}),
        ({"input_ids": IDS[0], "labels": IDS[0]}, {": input_ids": "invalid_inputs"}),
        ({"input_ids": IDS, "labels": IDS[:, :1]}, {": labels": "invalid_targets"}),
        ({"inputs": IDS, "targets": IDS[:, :2]}, {": targets": "invalid_targets"}),
        ({"input_ids": IDS, "labels": IDS[:1]}, {"": "length_mismatch"}),
        ({"input_ids": IDS, "labels": torch.full((2, 3), -100)}, {": labels": "invalid_targets"}),
        ({"attention_mask": torch.ones(2, 2).long()}, {": attention_mask": "invalid_mask"}),
        ({"attention_mask": torch.ones(2, 3)}, {": attention_mask": "invalid_mask"}),
        ({"token_type_ids": torch.ones(2, 3)}, {": token_type_ids": "invalid_types"}),
        ({"pixel_values": torch.ones(2, 3)}, {"": "ambiguous"}),
    ],
)
def test_token_data_that_is_none_is_refused(tmp_path: Path, tensors: dict[str, Tensor], codes: dict[str, str]) -> None:
    given = (
        tensors
        if tensors.keys() & {"labels", "input_ids", "inputs"}
        else {"input_ids": IDS, "labels": IDS.clone(), **tensors}
    )
    path = written(tmp_path, **{name: tensor.contiguous().clone() for name, tensor in given.items()})
    assert refusal(path) == {f"data.safetensors{place}": f"dataset.{code}" for place, code in codes.items()}


def test_labels_of_another_text_may_have_another_length(tmp_path: Path) -> None:
    facts = read_dataset_facts(written(tmp_path, input_ids=IDS, labels=IDS[:, :2].contiguous()))
    assert (facts.input_shape, facts.target_shape, facts.loss) == ((3,), (2,), "causal_lm")


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_a_mask_says_whether_anything_is_padded(tmp_path: Path, dtype: torch.dtype, last: int) -> None:
    mask = torch.tensor([[1, 1, 1], [1, 1, last]]).to(dtype)
    path = written(
        tmp_path, input_ids=IDS, labels=IDS.clone(), attention_mask=mask, token_type_ids=torch.zeros_like(IDS)
    )
    assert read_dataset_facts(path).padded is (last == 0)


def test_images_may_have_the_names_that_transformers_gives_them(tmp_path: Path) -> None:
    facts = read_dataset_facts(written(tmp_path, pixel_values=torch.zeros(2, 3, 4, 4), labels=torch.tensor([0, 2])))
    assert (facts.input_shape, facts.target_max, facts.loss) == ((3, 4, 4), 2, "cross_entropy")


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"inputs": torch.zeros(2, 2)}, tmp_path / "data.pt")
    with pytest.raises(CheckpointError) as caught:
        read_dataset_facts(tmp_path / "data.pt")
    assert caught.value.problems[0].code == "checkpoint.pickle"
