"""What all merging stages promise, of those that solve for tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cogram_core import fuse, fuse_modules, inspect
from cogram_core.errors import FusionStopped
from cogram_core.observer import SilentObserver
from cogram_core.preflight.payloads import payload_bytes
from cogram_core.recipe import Recipe
from cogram_core.trace import Trace
from tests.core.factories import checkpoint_bytes, conv_net, mlp, points, recipe_document, specialists
from tests.core.promises.replaying import Run

STAGES: list[dict[str, Any]] = [
    {"method": "regmean"},
    {"method": "regmean", "prefix": "merged"},
    {"method": "chain_of_merges"},
    {"method": "chain_of_merges", "target": "propagated", "rest": "fisher"},
]
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: "-".join(map(str, stage.values())))


@pytest.mark.parametrize("build", [mlp, conv_net])
@each_stage
def test_it_replays_without_data_and_without_a_forward_pass(
    stage: dict[str, Any], build: Callable[[int], nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, specialists(3, 3, build), [stage], guard="report", output={"dtype": "bfloat16"})
    run.assert_replays(monkeypatch, tmp_path / "again")


class Stopping(SilentObserver):
    """Asks the run to stop at a given one of its stop points, or counts them."""

    def __init__(self, moment: int | None = None) -> None:
        self.asked = 0
        self.taken: int | None = None
        self._moment = moment

    def should_stop(self) -> bool:
        self.asked += 1
        return self._moment is not None and self.asked > self._moment

    def resumed(self, taken: int) -> None:
        self.taken = taken


@each_stage
def test_a_run_that_ends_anywhere_is_gone_on_with_to_the_same_bytes(stage: dict[str, Any], tmp_path: Path) -> None:
    stages = [stage, {"method": "cogram", "granularity": "layer"}]
    document = recipe_document(tmp_path / "in", specialists(3), stages, evaluation=points(1, 30), guard="off")
    counting = Stopping()
    fuse(document, tmp_path / "whole", observer=counting)
    taken = set()
    for number, part in enumerate((0.3, 0.6, 0.95)):
        journal, output, again = tmp_path / f"journal-{number}", tmp_path / f"out-{number}", Stopping()
        with pytest.raises(FusionStopped):
            fuse(document, output, journal=journal, observer=Stopping(math.floor(part * counting.asked)))
        fuse(document, output, earlier=[journal], observer=again)
        assert checkpoint_bytes(output) == checkpoint_bytes(tmp_path / "whole")
        taken.add(again.taken)
    assert any(taken)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_stage
def test_rows_carry_as_many_bytes_as_the_preflight_counts(stage: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    document = recipe_document(
        tmp_path / "in", specialists(3), [stage], evaluation=points(1), guard="off", compute_dtype=dtype
    )
    output = fuse(document, tmp_path / "out").output
    shapes = {tensor["name"]: tensor["shape"] for tensor in inspect(output)["tensors"]}
    recipe = Recipe.from_document(document)
    rows = list(Trace(output / "trace.parquet").decisions())
    assert len(rows) == len(shapes)
    for row in rows:
        assert row.action == "solved"
        assert len(row.payload or b"") == payload_bytes(recipe, recipe.stages[0]) * math.prod(shapes[row.layer])


@each_stage
def test_the_order_of_the_sources_matters_up_to_rounding_alone(stage: dict[str, Any]) -> None:
    modules = specialists(5, 3)
    data = {"evaluation": points(1, 50)}
    one = fuse_modules(modules, stages=[stage], data=data, guard="off").module.state_dict()
    other = fuse_modules(modules[::-1], stages=[stage], data=data, guard="off").module.state_dict()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], rtol=1e-3, atol=1e-4), name
