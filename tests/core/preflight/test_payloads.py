from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cogram_core
from cogram_core.errors import InvalidInput
from cogram_core.preflight import payload_problems
from cogram_core.preflight.payloads import MAX_PAYLOAD, payload_bytes
from cogram_core.recipe import Recipe
from cogram_core.trace import Trace
from tests.core.factories import points, recipe_document, save_data, specialists

FINE = {"method": "finetune", "kickoff_epochs": 1, "epochs": 1}


def recipe(stages: list[Any], sources: int, dtype: str = "float32") -> Recipe:
    return Recipe.from_document(
        {
            "sources": [{"name": f"s{place}", "checkpoint": f"c{place}"} for place in range(sources)],
            "data": {"evaluation": "e"} | ({"training": "t"} if FINE in stages else {}),
            "stages": [{"method": stage} if isinstance(stage, str) else stage for stage in stages],
            "compute_dtype": dtype,
            "guard": "off",
        }
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sources", [2, 4])
def test_a_row_carries_as_many_bytes_as_the_preflight_counts(tmp_path: Path, sources: int, dtype: str) -> None:
    data = {name: points(80 + place) for place, name in enumerate(("evaluation", "holdout", "training"))}
    document = recipe_document(
        tmp_path / "in", specialists(3, sources), ["fisher", FINE], **data, guard="report", compute_dtype=dtype
    )
    given = Recipe.from_document(document)
    output = cogram_core.fuse(given, tmp_path / "out").output
    shapes = {tensor["name"]: tensor["shape"] for tensor in cogram_core.inspect(output)["tensors"]}
    rows = [row for row in Trace(output / "trace.parquet").decisions() if row.payload is not None]
    assert {(row.stage, row.method) for row in rows} == {(0, "fisher"), (1, "finetune")}
    for row in rows:
        assert row.payload is not None
        assert len(row.payload) == payload_bytes(given, given.stages[row.stage]) * math.prod(shapes[row.layer])


@pytest.mark.parametrize(
    ("stages", "sources", "dtype", "elements"),
    [
        (["fisher"], 2, "float32", MAX_PAYLOAD // 2),
        (["fisher"], 5, "float64", MAX_PAYLOAD // 8),
        (["linear", FINE], 5, "float32", MAX_PAYLOAD // 4),
        (["linear", FINE], 2, "float64", MAX_PAYLOAD // 8),
    ],
)
def test_a_tensor_that_no_row_can_carry_is_refused_by_its_shape(
    stages: list[Any], sources: int, dtype: str, elements: int
) -> None:
    given = recipe(stages, sources, dtype)
    assert list(payload_problems(given, {"small": (3,), "most": (elements,)})) == []
    (problem,) = payload_problems(given, {"small": (3,), "too.much": (elements + 1, 1)})
    assert (problem.location, problem.code) == (f"stages[{len(stages) - 1}]: too.much", "recipe.too_large_for_trace")
    assert "; take" in problem.message


def test_methods_that_leave_no_values_in_the_trace_take_tensors_of_any_size() -> None:
    given = recipe(["linear", "cogram"], 9)
    assert list(payload_problems(given, {"huge": (2**40,)})) == []


COLUMNS = 1024
ROWS = MAX_PAYLOAD // 4 // COLUMNS + 1  # a number has two shares beside the last one, of two bytes each


def huge(folder: Path) -> Path:
    """A checkpoint of zeros that takes no room: its file is a hole."""
    size = 4 * ROWS * COLUMNS
    header = json.dumps({"0.weight": {"dtype": "F32", "shape": [ROWS, COLUMNS], "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return folder


def test_a_fusion_of_such_checkpoints_is_refused_before_a_tensor_is_read(tmp_path: Path) -> None:
    document = {
        "sources": [{"name": f"s{place}", "checkpoint": str(huge(tmp_path / str(place)))} for place in range(3)],
        "network": {
            "kind": "sequential",
            "layers": [{"type": "Linear", "in_features": COLUMNS, "out_features": ROWS, "bias": False}],
        },
        "data": {"evaluation": str(save_data(tmp_path / "data.safetensors", points(1, shape=(COLUMNS,))))},
        "stages": [{"method": "fisher"}],
        "guard": "off",
    }
    with pytest.raises(InvalidInput) as caught:
        cogram_core.fuse(document, tmp_path / "out")
    assert [problem.location for problem in caught.value.problems] == ["stages[0]: 0.weight"]


def test_a_fusion_of_such_modules_is_refused_before_they_are_copied() -> None:
    def module() -> nn.Module:
        layer = nn.Linear(COLUMNS, 1, bias=False)
        layer.weight = nn.Parameter(torch.zeros(1).expand(ROWS, COLUMNS))
        return nn.Sequential(layer)

    data = {"evaluation": points(1, shape=(COLUMNS,))}
    with pytest.raises(InvalidInput) as caught:
        cogram_core.fuse_modules([module() for _ in range(3)], stages="fisher", data=data, guard="off")
    assert [problem.location for problem in caught.value.problems] == ["stages[0]: 0.weight"]
