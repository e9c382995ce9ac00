from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cogram_core.determinism import repeatable
from cogram_core.networks.calls import CallTree, record_calls, replaced
from tests.core.methods.families import FAMILIES


def tree(family: str) -> CallTree:
    module, inputs = FAMILIES[family].build().eval(), FAMILIES[family].data(0)[0][:1]
    with repeatable(1, torch.device("cpu")), torch.no_grad():
        calls, output = record_calls(module, lambda: module(inputs))
        assert torch.equal(output, module(inputs))
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in module.modules())
    return calls


def cut(family: str, module: str) -> tuple[str, int]:
    return tree(family).cut(module).key


def before(family: str, module: str) -> list[tuple[str, int]]:
    calls = tree(family)
    return [call.key for call in calls.before(calls.cut(module))]


def test_the_cut_of_a_module_is_its_one_call_else_that_of_the_nearest_around_it() -> None:
    assert cut("decoder", "attention.qkv") == ("attention.qkv", 0)
    assert cut("twice", "again") == ("", 0)
    assert cut("encoder", "0.self_attn.out_proj") == ("0.self_attn", 0)


def test_before_a_cut_stand_the_outermost_calls_that_ended() -> None:
    assert before("residual", "head") == [("first", 0), ("norm", 0), ("inner", 0)]
    assert before("decoder", "attention.out") == [("tokens", 0), ("places", 0), ("before", 0), ("attention.qkv", 0)]
    # What is inside of attention isn't named beside it.
    assert before("decoder", "up") == [("tokens", 0), ("places", 0), ("before", 0), ("attention", 0)]
    assert before("twice", "last") == [("first", 0), ("again", 0), ("again", 1)]
    assert before("twice", "again") == []


def test_calls_nest_and_their_times_never_cross() -> None:
    calls = tree("decoder").calls
    assert calls[0].module == ""
    assert calls[0].parent is None
    for call in calls[1:]:
        assert call.parent is not None
        around = calls[call.parent]
        assert around.begin < call.begin < call.end < around.end


def test_a_replaced_forward_pass_is_put_back_even_if_it_fails() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    modules, inputs = dict(module.named_modules()), torch.ones(1, 3)
    expected: Tensor = module(inputs)

    def fail(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with replaced(modules, {"0": lambda _: torch.ones(1, 2)}):
        assert torch.equal(module(inputs), torch.ones(1, 2))
    with pytest.raises(KeyboardInterrupt), replaced(modules, {"0": fail}):
        module(inputs)
    assert torch.equal(module(inputs), expected)
