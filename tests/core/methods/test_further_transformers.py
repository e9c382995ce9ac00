"""Methods with a base, and those that go by layers, on networks of the transformers library, with padded texts."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cogram_core import fuse, replay
from cogram_core.trace import Trace
from tests.core.factories import checkpoint_bytes
from tests.core.networks.libraries import FAMILIES, own_outputs, saved
from tests.core.pipeline.test_transformers import recipe


def moments(module: nn.Module, family: str, data: dict[str, Tensor], layers: list[str]) -> dict[str, list[Tensor]]:
    """Mean and deviation of what the layers' units give, text by text and without padding."""
    rows: dict[str, list[Tensor]] = defaultdict(list)
    for name in layers:
        module.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: rows[name].append(output.detach().double().flatten(0, -2))
        )
    own_outputs(module, family, data)
    found = {name: torch.cat(parts) for name, parts in rows.items()}
    return {name: [each.mean(0), each.std(0, correction=0)] for name, each in found.items()}


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("gpt2 classifier", ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"]),
        ("bert", ["bert.encoder.layer.0.attention.self.key", "bert.encoder.layer.1.output.dense"]),
    ],
)
def test_repaired_units_have_the_sources_moments_at_places_that_are_there(
    family: str, layers: list[str], tmp_path: Path
) -> None:
    given = recipe(tmp_path, family, ["linear", "repair"], guard="off")
    out = fuse(given, tmp_path / "out").output
    kind, data = type(FAMILIES[family].build(0)), FAMILIES[family].data(0)
    folders = [Path(source["checkpoint"]) for source in given["sources"]]
    found, *own = (moments(kind.from_pretrained(folder).eval(), family, data, layers) for folder in (out, *folders))
    for name in layers:
        for place in (0, 1):
            wanted = torch.stack([each[name][place] for each in own]).mean(0)
            assert torch.allclose(found[name][place], wanted, rtol=1e-3, atol=1e-4), (name, place)
    # A tied or unused layer would be skipped; here are none.
    rows = [decision for decision in Trace(out / "trace.parquet").decisions() if decision.method == "repair"]
    assert {decision.action for decision in rows} == {"solved"}


@pytest.mark.parametrize(
    ("family", "stages"),
    [
        ("bert", ["opcm", {"method": "adamerging", "steps": 2}]),
        ("resnet", [{"method": "preserve_first", "layers": 3}, {"method": "adamerging", "steps": 2}, "repair"]),
        ("mixtral", ["opcm", "repair"]),
    ],
)
def test_they_run_and_replay_on_all_of_its_tensors(family: str, stages: list[Any], tmp_path: Path) -> None:
    base = saved(tmp_path, family, 7)
    given = recipe(tmp_path, family, stages, guard="report", base=str(base))
    out = fuse(given, tmp_path / "out").output
    sources = [source["checkpoint"] for source in given["sources"]]
    replay(sources, out / "trace.parquet", tmp_path / "again", base=base)
    assert checkpoint_bytes(tmp_path / "again") == checkpoint_bytes(out)
