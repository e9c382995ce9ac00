from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cogram_core import fuse
from cogram_core.networks.permutations import Symmetry, find_symmetry
from cogram_core.permuting import permuted
from tests.core.factories import random
from tests.core.networks.libraries import FAMILIES, own_outputs, saved
from tests.core.networks.test_transformers import opened

# Heads, and hidden units of feed-forward layers; the residual stream is one more where the output isn't its own.
HEADS = {"bert": (2, 8), "gpt2": (2, 8), "gemma2": (2, 8), "mixtral": (2, 8), "t5 classifier": (2, 8), "vit": (2, 8)}


def symmetry_of(path: Path, family: str, data: dict[str, Tensor]) -> Symmetry:
    network, dataset = opened(path, family, data)
    return find_symmetry(network, dataset.inputs)


def shuffled(path: Path, symmetry: Symmetry) -> Path:
    """A copy of a checkpoint with all groups in random orders."""
    copied, generator = path.with_name(f"{path.name}-shuffled"), random(1)
    shutil.copytree(path, copied)
    state = load_file(path / "model.safetensors")
    for group in symmetry.groups:
        order = torch.randperm(group.units, generator=generator)
        for axis in group.axes:
            state[axis.tensor] = permuted(state[axis.tensor], [(axis, order)]).contiguous()
    save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
    return copied


@pytest.mark.parametrize("family", HEADS)
def test_a_library_s_network_merged_with_a_permuted_copy_gives_itself(tmp_path: Path, family: str) -> None:
    path, data = saved(tmp_path, family), FAMILIES[family].data(1, 24)
    symmetry = symmetry_of(path, family, data)
    assert HEADS[family] in {(group.units, group.features) for group in symmetry.groups}
    assert (16, 1) in {(group.units, group.features) for group in symmetry.groups}  # the residual stream
    copied = shuffled(path, symmetry)
    given = own_outputs(FAMILIES[family].build(0), family, data)
    module = type(FAMILIES[family].build(0)).from_pretrained(copied).eval()
    torch.testing.assert_close(own_outputs(module, family, data), given, rtol=1e-4, atol=1e-4)
    evaluation = tmp_path / "evaluation.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in data.items()}, evaluation)
    for match in ("activations", "weights"):
        recipe = {
            "sources": [{"name": name, "checkpoint": str(at)} for name, at in (("one", path), ("other", copied))],
            "stages": [{"method": "align", "match": match}, {"method": "linear"}],
            "data": {"evaluation": str(evaluation)},
            "guard": "off",
        }
        fuse(recipe, tmp_path / match)
        found = load_file(tmp_path / match / "model.safetensors")
        assert all(torch.equal(found[name], tensor) for name, tensor in load_file(path / "model.safetensors").items())
