"""Chain of Merges and RegMean on networks of the transformers library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cogram_core import fuse
from cogram_core.trace import Decision, Trace
from tests.core.networks.libraries import FAMILIES, saved


def fused(
    folder: Path, sources: list[Path], data: dict[str, Tensor], method: str
) -> tuple[dict[str, Tensor], list[Decision]]:
    """The fused tensors, and the trace."""
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in data.items()}, folder / "data.safetensors")
    document: dict[str, Any] = {
        "sources": [{"name": f"s{place}", "checkpoint": str(path)} for place, path in enumerate(sources)],
        "data": {"evaluation": str(folder / "data.safetensors")},
        "stages": [{"method": method}],
        "guard": "off",
    }
    output = fuse(document, folder / "out").output
    return load_file(output / "model.safetensors"), list(Trace(output / "trace.parquet").decisions())


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen3", "gemma", "resnet"])
def test_everything_is_solved_but_tied_tensors_and_copies_give_the_network_back(tmp_path: Path, family: str) -> None:
    one, other = saved(tmp_path, family, 0), saved(tmp_path, family, 1)
    data = FAMILIES[family].data(3)
    state, rows = fused(tmp_path / "both", [one, other], data, "chain_of_merges")
    tied = {"gpt2": {"transformer.wte.weight"}, "gemma": {"model.embed_tokens.weight"}}.get(family, set())
    assert {row.layer for row in rows if row.action == "merged"} == tied
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
    for row in rows:
        if row.loss_before is not None and row.loss_after is not None:
            assert row.loss_after <= row.loss_before * (1 + 1e-6)
    original = load_file(one / "model.safetensors")
    same, _ = fused(tmp_path / "copies", [one, one], data, "chain_of_merges")
    assert all(torch.equal(tensor, same[name]) for name, tensor in original.items())


@pytest.mark.parametrize("method", ["chain_of_merges", "regmean"])
def test_more_padding_gives_the_same_merge(tmp_path: Path, method: str) -> None:
    sources, data = [saved(tmp_path, "bert", 0), saved(tmp_path, "bert", 1)], FAMILIES["bert"].data(3)
    longer = {
        **data,
        "input_ids": torch.nn.functional.pad(data["input_ids"], (0, 4), value=7),
        "attention_mask": torch.nn.functional.pad(data["attention_mask"], (0, 4)),
    }
    state, rows = fused(tmp_path / "short", sources, data, method)
    padded, others = fused(tmp_path / "long", sources, longer, method)
    for name, tensor in state.items():
        assert torch.allclose(tensor, padded[name], rtol=1e-2, atol=1e-4), name
    used = [(row.layer, row.reason.split(",")[0]) for row in rows if "encoder.layer" in row.layer]
    assert used == [(row.layer, row.reason.split(",")[0]) for row in others if "encoder.layer" in row.layer]
    places = 2 * int(data["attention_mask"].sum())
    assert ("bert.encoder.layer.0.output.dense.weight", f"solved on {places} rows") in used
