from __future__ import annotations

import copy
from pathlib import Path

import torch

from cogram_core import fuse
from tests.core.factories import mlp, points, read_output, recipe_document, save_data
from tests.core.methods.test_fisher import naive_fisher, states


def test_each_source_s_fisher_is_taken_on_its_own_data_and_counts_by_its_weight(tmp_path: Path) -> None:
    modules = [mlp(1), mlp(2)]
    own = [points(11, 10), points(12, 14)]
    document = recipe_document(tmp_path, modules, ["fisher"], guard="off")
    for place, weight in enumerate((1.0, 5.0)):
        path = save_data(tmp_path / f"own-{place}.safetensors", own[place])
        document["sources"][place] |= {"data": str(path), "weight": weight}
    fuse(document, tmp_path / "out")
    found = read_output(tmp_path / "out")
    fishers = [naive_fisher(module, data[0]) for module, data in zip(modules, own, strict=True)]
    largest = max(float(value.max()) for fisher in fishers for value in fisher.values())
    for name, tensor in found.items():
        one, other = states(modules, name)
        a, b = fishers[0][name] + 1e-10 * largest, 5.0 * (fishers[1][name] + 1e-10 * largest)
        exact = (a * one + b * other) / (a + b)
        assert ((tensor.double() - exact).abs() <= (one - other).abs() * 2.0**-14 + exact.abs() * 2.0**-23).all(), name
        assert not torch.allclose(tensor.double(), (one + other) / 2, atol=1e-3)


def test_a_source_without_data_of_its_own_uses_the_evaluation_data(tmp_path: Path) -> None:
    modules, shared = [mlp(1), mlp(2)], points(11, 10)
    fuse(recipe_document(tmp_path, modules, ["fisher"], evaluation=shared, guard="off"), tmp_path / "out")
    document = recipe_document(tmp_path / "again", modules, ["fisher"], guard="off", evaluation=points(99, 30))
    for source in document["sources"]:
        source["data"] = str(tmp_path / "evaluation.safetensors")
    fuse(document, tmp_path / "out2")
    assert all(torch.equal(t, read_output(tmp_path / "out2")[n]) for n, t in read_output(tmp_path / "out").items())


def test_float16_sources_are_merged_as_the_numbers_that_they_hold(tmp_path: Path) -> None:
    modules = [mlp(1), mlp(2)]
    for folder, dtype in (("half", torch.float16), ("single", None)):
        held = modules if dtype is not None else [copy.deepcopy(module).half().float() for module in modules]
        document = recipe_document(
            tmp_path / folder, held, ["fisher"], evaluation=points(11, 10), dtype=dtype, guard="off"
        )
        fuse(document, tmp_path / f"{folder}-out")
    half, single = read_output(tmp_path / "half-out"), read_output(tmp_path / "single-out")
    assert all(torch.equal(half[name], tensor.half()) for name, tensor in single.items())
