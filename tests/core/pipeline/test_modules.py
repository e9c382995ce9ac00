from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cogram_core
from cogram_core.errors import FusionStopped, InvalidInput
from tests.core.factories import Pair, mlp, points
from tests.core.pipeline.recording import Recording


def refusal(modules: list[nn.Module], **arguments: Any) -> dict[str, str]:
    with pytest.raises(InvalidInput) as caught:
        cogram_core.fuse_modules(modules, **({"stages": ["linear"], "guard": "off"} | arguments))
    return {problem.location: problem.code for problem in caught.value.problems}


class WithState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_one_module_is_too_few() -> None:
    assert refusal([mlp(0)]) == {"sources": "recipe.too_few_sources"}


def test_modules_of_other_shapes_are_refused_tensor_by_tensor() -> None:
    assert refusal([mlp(0), mlp(1, (6, 8, 5, 3))]) == {
        "module-1: 4.weight": "sources.mismatch",
        "module-1: 4.bias": "sources.mismatch",
    }
    assert refusal([mlp(0), mlp(1).double()]).keys() == {f"module-1: {name}" for name in mlp(0).state_dict()}


def test_state_that_no_checkpoint_could_hold_is_refused() -> None:
    assert refusal([WithState(2, 2), WithState(2, 2)]) == {"module-0: _extra_state": "sources.not_storable"}
    complex_ones = [nn.Linear(2, 2, dtype=torch.complex64) for _ in range(2)]
    assert refusal(list(complex_ones)) == {
        "module-0: weight": "sources.not_storable",
        "module-0: bias": "sources.not_storable",
    }
    assert "module-0: weight" in refusal([nn.Linear(2, 2, device="meta") for _ in range(2)])


def test_nan_in_a_module_is_refused() -> None:
    broken = mlp(1)
    with torch.no_grad():
        broken[2].bias[0] = float("nan")
    assert refusal([mlp(0), broken]) == {"module-1: 2.bias": "sources.not_finite"}


def test_problems_of_all_datasets_are_told_together() -> None:
    inputs, targets = points(0)
    data = {"evaluation": (inputs * float("nan"), targets), "holdout": (inputs[1:], targets)}
    assert refusal([mlp(0), mlp(1)], data=data, guard="report") == {
        "data.evaluation: inputs": "dataset.not_finite",
        "data.holdout": "dataset.length_mismatch",
    }
    data = {"evaluation": (inputs, targets + 1), "holdout": (inputs, targets - 1)}
    assert refusal([mlp(0), mlp(1)], data=data, guard="report") == {
        "data.evaluation: targets": "dataset.targets_outside_classes",
        "data.holdout: targets": "dataset.targets_outside_classes",
    }


def test_unknown_data_stages_and_options_are_told_by_name() -> None:
    assert refusal([mlp(0), mlp(1)], data={"evaluatoin": points(0)}) == {"data.evaluatoin": "recipe.unknown_key"}
    assert refusal([mlp(0), mlp(1)], stages=["liner"]) == {"stages[0].method": "recipe.unknown_method"}
    assert refusal([mlp(0), mlp(1)], stages=["linear"], device="gpu").keys() == {"device"}


def test_the_given_modules_are_left_as_they_were() -> None:
    modules = [mlp(0).train(), mlp(1).train()]
    before = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]
    data = {"evaluation": points(2), "holdout": points(3)}
    fused = cogram_core.fuse_modules(modules, stages=["cogram"], data=data).module
    for module, state in zip(modules, before, strict=True):
        assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in state.items())
        assert module.training
        assert all(parameter.requires_grad for parameter in module.parameters())
    assert not fused.training
    assert fused is not modules[0]


def test_a_stop_ends_a_fusion_in_memory_too() -> None:
    with pytest.raises(FusionStopped):
        cogram_core.fuse_modules([mlp(0), mlp(1)], stages=["linear"], guard="off", observer=Recording(3))


def test_a_single_stage_may_be_a_word() -> None:
    one = cogram_core.fuse_modules([mlp(0), mlp(1)], stages="linear").module
    other = cogram_core.fuse_modules([mlp(0), mlp(1)], stages=["linear"]).module
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_data_that_is_no_pair_of_tensors_is_told() -> None:
    inputs, targets = points(0)
    data = {"evaluation": (inputs.numpy(), targets.numpy()), "holdout": points(1)}
    assert refusal([mlp(0), mlp(1)], data=data) == {"data.evaluation": "dataset.not_tensors"}


def test_a_holdout_set_with_the_evaluation_examples_is_refused() -> None:
    inputs, targets = points(0)
    for order in (torch.arange(len(targets)), torch.arange(len(targets)).flip(0)):
        data = {"evaluation": (inputs, targets), "holdout": (inputs[order], targets[order])}
        assert refusal([mlp(0), mlp(1)], data=data) == {"data.holdout": "recipe.same_data"}


class Tied(nn.Module):
    """Reads and writes by one matrix."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.into, self.middle, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.out.weight = self.into.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.out(torch.relu(self.middle(self.into(inputs)))))


def test_tied_modules_stay_tied_and_their_one_tensor_is_decided_on_as_a_whole() -> None:
    data = {name: points(seed) for seed, name in enumerate(("evaluation", "holdout"))}
    fused, trace = cogram_core.fuse_modules([Tied(0), Tied(1)], stages=["fisher", "cogram"], data=data)
    assert isinstance(fused, Tied)
    assert fused.out.weight is fused.into.weight
    decisions = list(trace.decisions())
    assert {decision.layer for decision in decisions if decision.method == "fisher"} == {
        "into.weight", "into.bias", "middle.weight", "middle.bias",
    }  # fmt: skip
    losses = [
        nn.functional.cross_entropy(module(data["holdout"][0]), data["holdout"][1]) for module in (fused, Tied(0))
    ]
    assert any(decision.action == "merged" and decision.layer == "into" for decision in decisions)
    assert losses[0] <= losses[1]


def test_each_modules_own_data_are_its_statistics() -> None:
    modules = [mlp(1), mlp(2)]
    one, two = points(1), points(2, skew=0.9)
    evaluation = points(3)

    def fused(data: list[Pair | None]) -> dict[str, torch.Tensor]:
        options = {"stages": ["fisher"], "data": {"evaluation": evaluation}, "guard": "off"}
        return cogram_core.fuse_modules(modules, **options, source_data=data).module.state_dict()

    own, swapped = fused([one, two]), fused([two, one])
    assert any(not torch.equal(own[name], swapped[name]) for name in own)
    common, none = fused([None, evaluation]), fused([])
    assert all(torch.equal(common[name], none[name]) for name in common)


def test_data_of_a_module_that_is_not_there_is_refused() -> None:
    found = refusal([mlp(1), mlp(2)], stages=["fisher"], source_data=[None, None, points(1)])
    assert found == {"source_data": "recipe.too_much_data"}
