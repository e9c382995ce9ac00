"""A base on its way: into the fusion, the trace, the replay, and what is refused on it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cogram_core import fuse, fuse_modules, replay
from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.errors import CheckpointError, InvalidInput, ReplayError
from cogram_core.methods.opcm import Params, merge
from cogram_core.trace import Trace
from tests.core.factories import (
    checkpoint_bytes,
    mlp,
    points,
    read_output,
    recipe_document,
    save_checkpoint,
    specialists,
)

COGRAM = {"method": "cogram", "max_sweeps": {"layer": 1}}


class Fused:
    """A fusion with a base, by a stage that goes by each tensor alone or with one more that needs a network."""

    def __init__(self, folder: Path, stages: list[Any], **data: Any) -> None:
        self.modules, self.start = specialists(3), mlp(3)
        self.base = save_checkpoint(folder / "base", self.start)
        document = recipe_document(folder / "in", self.modules, stages, base=str(self.base), **data)
        self.sources = [source["checkpoint"] for source in document["sources"]]
        self.out = fuse(document, folder / "out").output
        self.trace = self.out / "trace.parquet"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Fused:
    return Fused(tmp_path_factory.mktemp("finished"), [{"method": "opcm", "alpha": 0.3}])


def expected(modules: list[nn.Module], base: nn.Module, alpha: float) -> dict[str, Tensor]:
    states = [module.state_dict() for module in modules]
    return {
        name: merge(tensor, [state[name] for state in states], [1.0] * len(states), Params(alpha=alpha)).float()
        for name, tensor in base.state_dict().items()
    }


def test_each_tensor_is_merged_with_the_base_s(finished: Fused) -> None:
    wanted = expected(finished.modules, finished.start, 0.3)
    found = read_output(finished.out)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_in_memory_it_is_the_same(finished: Fused) -> None:
    kept = copy.deepcopy(finished.start.state_dict())
    stages = [{"method": "opcm", "alpha": 0.3}]
    result = fuse_modules(finished.modules, stages=stages, base=finished.start)
    found = read_output(finished.out)
    assert all(torch.equal(found[name], tensor) for name, tensor in result.module.state_dict().items())
    assert all(torch.equal(kept[name], tensor) for name, tensor in finished.start.state_dict().items())


def test_the_trace_names_the_base_and_replays_with_it(finished: Fused, tmp_path: Path) -> None:
    with CheckpointReader.open(finished.base) as reader:
        assert Trace(finished.trace).metadata["base"] == reader.digest().combined
        assert json.loads((finished.out / "report.json").read_text())["base"] == reader.digest().combined
    replay(finished.sources, finished.trace, tmp_path / "again", base=finished.base)
    assert checkpoint_bytes(tmp_path / "again") == checkpoint_bytes(finished.out)


def test_with_a_network_and_further_stages_it_replays(tmp_path: Path) -> None:
    data = {"evaluation": points(7, 30), "holdout": points(8, 30), "guard": "report"}
    fused = Fused(tmp_path, ["opcm", COGRAM], **data)
    replay(fused.sources, fused.trace, tmp_path / "again", base=fused.base)
    assert checkpoint_bytes(tmp_path / "again") == checkpoint_bytes(fused.out)


def refusal(finished: Fused, target: Path, base: Path | None) -> list[tuple[str, str]]:
    with pytest.raises(ReplayError) as caught:
        replay(finished.sources, finished.trace, target, base=base)
    assert not target.exists()
    return [(problem.location, problem.code) for problem in caught.value.problems]


def test_a_replay_without_the_base_or_with_another_is_refused(finished: Fused, tmp_path: Path) -> None:
    assert refusal(finished, tmp_path / "again", None) == [("base", "replay.missing_base")]
    other = save_checkpoint(tmp_path / "other", mlp(4))
    assert refusal(finished, tmp_path / "again", other) == [("base", "replay.other_base")]
    with pytest.raises(ReplayError) as caught:
        replay(finished.sources[::-1], finished.trace, tmp_path / "again", base=other)
    assert len(caught.value.problems) == 3  # the sources' are told as well
    with pytest.raises(CheckpointError):
        replay(finished.sources, finished.trace, tmp_path / "again", base=tmp_path / "gone")


def test_a_base_that_a_trace_has_no_use_for_is_refused(finished: Fused, tmp_path: Path) -> None:
    document = recipe_document(tmp_path / "in", finished.modules, ["linear"])
    out = fuse(document, tmp_path / "out").output
    assert Trace(out / "trace.parquet").metadata["base"] is None
    sources = [source["checkpoint"] for source in document["sources"]]
    with pytest.raises(ReplayError) as caught:
        replay(sources, out / "trace.parquet", tmp_path / "again", base=finished.base)
    assert [problem.code for problem in caught.value.problems] == ["replay.unused_base"]


def test_a_base_of_other_tensors_or_without_numbers_is_refused(tmp_path: Path) -> None:
    modules, broken = specialists(3), mlp(3)
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    for base, place in ((mlp(3, (6, 7, 5, 4)), "base: 0.bias"), (broken, "base: 0.weight")):
        with pytest.raises(InvalidInput) as in_memory:
            fuse_modules(modules, stages=["opcm"], base=base)
        folder = tmp_path / place.replace(":", "")
        path = save_checkpoint(folder / "base", base)
        with pytest.raises(InvalidInput) as on_disk:
            fuse(recipe_document(folder / "in", modules, ["opcm"], base=str(path)), folder / "out")
        for caught in (in_memory, on_disk):
            assert place in {problem.location for problem in caught.value.problems}


def test_a_base_that_is_missing_or_of_no_use_in_memory_is_told() -> None:
    for stage, base, code in (("opcm", None, "recipe.missing_base"), ("linear", mlp(3), "recipe.unused_base")):
        with pytest.raises(InvalidInput) as caught:
            fuse_modules(specialists(3), stages=[stage], base=base)
        assert [problem.code for problem in caught.value.problems] == [code]
