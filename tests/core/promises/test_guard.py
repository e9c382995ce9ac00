from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cogram_core import fuse, fuse_modules
from cogram_core.errors import RecipeError
from cogram_core.modules import FusedModule
from cogram_core.trace import Decision
from tests.core.factories import mlp, points, read_output, recipe_document, specialists
from tests.core.promises.judging import criterion, rounded

COGRAM = {"method": "cogram", "granularity": "neuron", "prototypes": {"per_class": 3}}


def run(modules: Sequence[nn.Module], stages: list[Any], holdout_seed: int = 91, **options: Any) -> FusedModule:
    data = {"evaluation": points(90, 40), "holdout": points(holdout_seed, 40)}
    return fuse_modules(modules, stages=stages, data=data, **options)


def verdict(result: FusedModule) -> dict[str, Any]:
    found: dict[str, Any] = result.trace.metadata["verdict"]
    return found


def facts(decision: Decision) -> tuple[Any, ...]:
    return (
        decision.layer,
        decision.row,
        decision.action,
        decision.shares,
        decision.loss_sources,
        decision.step,
        decision.payload,
    )


@pytest.mark.parametrize("name", ["calibrated_loss", "loss", "accuracy"])
def test_every_candidate_is_heard_in_order_and_scored_as_it_would_be_written(name: str) -> None:
    modules, holdout = specialists(2), points(91, 40)
    result = run(modules, ["linear", "fisher", COGRAM], guard={"mode": "report", "criterion": name})
    candidates = verdict(result)["candidates"]
    kinds = [candidate["kind"] for candidate in candidates]
    assert kinds[:3] == ["source", "source", "average"]
    assert set(kinds[3:]) == {"stage"}
    assert [candidate["label"] for candidate in candidates[:5]] == [
        "module-0",
        "module-1",
        "plain average",
        "linear: merged",
        "fisher: merged",
    ]
    assert [c["seq"] for c in candidates[3:]] == sorted(c["seq"] for c in candidates[3:])
    for place, candidate in enumerate(candidates[:2]):
        expected = criterion(name, modules[0], modules[place].state_dict(), holdout)
        listed = -candidate["holdout"]["accuracy"] if name == "accuracy" else candidate["holdout"][name]
        assert listed == pytest.approx(expected, abs=1e-7)
        assert candidate["evaluation"]["examples"] == 40
        assert sum(entry["examples"] for entry in candidate["holdout"]["classes"]) == 40
    written = criterion(name, modules[0], result.module.state_dict(), holdout)
    last = candidates[-1]["holdout"]
    assert written == pytest.approx(-last["accuracy"] if name == "accuracy" else last[name], abs=1e-7)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_candidates_are_scored_after_the_rounding_of_the_output(tmp_path: Path, dtype: str) -> None:
    modules, holdout = specialists(2), points(91, 40)
    document = recipe_document(
        tmp_path / "in", modules, ["fisher"], evaluation=points(90, 40), holdout=holdout, output={"dtype": dtype}
    )
    candidates = fuse(document, tmp_path / "out").verdict["candidates"]
    for module, candidate in zip(modules, candidates, strict=False):
        exact = criterion("loss", module, module.state_dict(), holdout)
        expected = criterion("loss", module, rounded(module.state_dict(), getattr(torch, dtype)), holdout)
        assert abs(expected - exact) > 1e-6
        assert candidate["holdout"]["loss"] == pytest.approx(expected, abs=1e-8)
    written = criterion("loss", modules[0], read_output(tmp_path / "out"), holdout)
    assert written in [pytest.approx(candidate["holdout"]["loss"], abs=1e-8) for candidate in candidates]


def test_the_best_candidate_is_written_and_on_ties_the_later_one() -> None:
    ties = 0
    for seed in range(8):
        document = verdict(
            run(specialists(seed), ["fisher", COGRAM], guard={"mode": "best_on_holdout", "criterion": "accuracy"})
        )
        worth = [-candidate["holdout"]["accuracy"] for candidate in document["candidates"]]
        best = len(worth) - 1 - worth[::-1].index(min(worth))
        chosen = document["candidates"][best]
        assert document["written"] == {key: chosen[key] for key in ("kind", "label", "source", "seq")}
        ties += worth.count(min(worth)) > 1
    assert ties > 0  # else nothing was said about them


def test_equal_networks_give_the_last_stage_and_no_claim_to_have_beaten_anyone() -> None:
    module = mlp(1)
    document = verdict(run([module, module], ["fisher", "cogram"]))
    assert document["written"]["kind"] == "stage"
    assert document["written"]["label"].startswith("cogram")
    assert document["fused_beats_all_sources"] is False
    assert "is level with the best source" in document["summary"]


def test_the_verdict_says_in_words_what_the_numbers_say() -> None:
    words = {
        "source": "Nothing was better than the source",
        "average": "Nothing was better than the plain average",
        "stage": "was written",
    }
    for seed in range(6):
        document = verdict(run(specialists(seed), ["fisher", COGRAM]))
        kind = document["written"]["kind"]
        assert words[kind] in document["summary"]
        if kind == "stage":
            assert ("beats every source" in document["summary"]) is document["fused_beats_all_sources"]
        sources = [c["holdout"]["calibrated_loss"] for c in document["candidates"] if c["kind"] == "source"]
        chosen = [c for c in document["candidates"] if c["seq"] == document["written"]["seq"] and c["kind"] == kind]
        worth = min(c["holdout"]["calibrated_loss"] for c in chosen)
        assert document["fused_beats_all_sources"] is (worth < min(sources))


def test_holdout_data_never_reaches_a_decision() -> None:
    modules = specialists(4)
    results = [run(modules, ["fisher", COGRAM], holdout_seed=seed) for seed in (91, 92)]
    assert verdict(results[0])["candidates"] != verdict(results[1])["candidates"]
    first, second = ([facts(d) for d in result.trace.decisions()] for result in results)
    assert first == second
    off = fuse_modules(modules, stages=["fisher", COGRAM], data={"evaluation": points(90, 40)}, guard="off")
    assert [facts(decision) for decision in off.trace.decisions()] == first


def test_a_reporting_guard_writes_the_last_stage_even_where_it_is_worse() -> None:
    found = []
    for seed in range(6):
        wrong = (points(90)[0], points(90)[1].flip(0))  # labels that mislead every decision
        data = {"evaluation": wrong, "holdout": points(91)}
        result = fuse_modules(specialists(seed), stages=["fisher", COGRAM], data=data, guard="report")
        document = verdict(result)
        last = document["candidates"][-1]
        assert document["written"] == {key: last[key] for key in ("kind", "label", "source", "seq")}
        found.append("is worse than the best source" in document["summary"])
    assert any(found)


def test_without_a_guard_nothing_is_compared_and_the_last_stage_is_written() -> None:
    modules = specialists(5)
    data: dict[str, tuple[Tensor, Tensor]] = {"evaluation": points(90, 40)}
    off = fuse_modules(modules, stages=["fisher", COGRAM], data=data, guard="off")
    document = verdict(off)
    assert document["candidates"] == []
    assert document["fused_beats_all_sources"] is None
    assert "nothing was compared" in document["summary"]
    report = fuse_modules(modules, stages=["fisher", COGRAM], data={**data, "holdout": points(91)}, guard="report")
    for name, tensor in off.module.state_dict().items():
        assert torch.equal(tensor, report.module.state_dict()[name])


def test_a_guard_without_holdout_data_is_refused(tmp_path: Path) -> None:
    document = recipe_document(tmp_path, [mlp(0), mlp(1)], ["fisher"], evaluation=points(0), guard="best_on_holdout")
    with pytest.raises(RecipeError) as caught:
        fuse(document, tmp_path / "out")
    assert [problem.code for problem in caught.value.problems] == ["recipe.missing_holdout"]
    assert not (tmp_path / "out").exists()
