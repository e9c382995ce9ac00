from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import nn

from cogram_core import fuse_modules
from cogram_core.determinism import repeatable
from cogram_core.networks.network import Network
from tests.core.factories import initialise, points, random

CPU = torch.device("cpu")


def encoder(seed: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    return initialise(nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)), seed)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_run_leaves_torch_as_it_found_it_however_it_ends(enabled: bool) -> None:
    torch.backends.mha.set_fastpath_enabled(enabled)
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        with suppress(KeyboardInterrupt), repeatable(3, CPU):
            assert torch.get_num_threads() == 3
            assert not torch.backends.mha.get_fastpath_enabled()
            raise KeyboardInterrupt
        assert torch.backends.mha.get_fastpath_enabled() == enabled
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_the_modules_of_an_encoder_layer_are_called_and_give_what_its_short_cut_gives() -> None:
    module, inputs = encoder(0), torch.randn(5, 3, 4, generator=random(1))
    with torch.no_grad():
        short = module(inputs)
    with repeatable(1, CPU):
        network = Network(module, inputs[:1])
        assert torch.allclose(network.logits(inputs), short, atol=1e-5)
    called = {call.module for call in network.calls.calls}
    assert {"0.self_attn", "0.linear1", "0.linear2", "0.norm1", "0.norm2"} <= called


def test_a_fusion_cuts_a_network_inside_an_encoder_layer() -> None:
    data = torch.randn(12, 3, 4, generator=random(2)), points(3, 12, classes=3)[1]
    stages = ["linear", {"method": "cogram", "granularity": "layer"}]
    trace = fuse_modules([encoder(1), encoder(2)], stages=stages, data={"evaluation": data}, guard="off").trace
    reasons = {decision.layer: decision.reason for decision in trace.decisions() if decision.stage == 1}
    assert reasons.keys() >= {"0.self_attn", "0.self_attn.out_proj", "0.linear1", "0.linear2", "0.norm1", "2"}
    # Attention is the first module that is called: nothing stands before it that a cut could spare.
    assert {name for name, reason in reasons.items() if "in full" not in reason} >= {"0.linear1", "0.linear2", "2"}
