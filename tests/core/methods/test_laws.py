"""Laws that hold for every method of the table."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cogram_core.methods as package
from cogram_core import fuse, fuse_modules
from cogram_core.errors import CheckpointError, InvalidInput
from cogram_core.methods import METHODS, catalogue
from cogram_core.methods.contract import TensorMethod
from tests.core.factories import conv_net, initialise, mlp, points, random, read_output, save_state

methods = pytest.mark.parametrize("method", sorted(METHODS))
# Training takes steps whatever the sources are.
fusing = pytest.mark.parametrize("method", sorted(name for name in METHODS if METHODS[name].kind != "training"))
# Others take the sources one after the other, keep layers of the first, or put units in its order, as auto may choose to.
fair = pytest.mark.parametrize("method", sorted(METHODS.keys() - {"align", "auto", "opcm", "preserve_first"}))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
builds = st.sampled_from([mlp, conv_net])
QUICK = {"adamerging": {"steps": 3}}


def fused(modules: list[nn.Module], method: str, **options: object) -> nn.Module:
    convolution = any(isinstance(layer, nn.Conv2d) for layer in modules[0].children())
    shape, classes = ((1, 4, 4), 3) if convolution else ((6,), 4)
    parts = ["evaluation", "holdout", *(["training"] if METHODS[method].kind == "training" else [])]
    data = {name: points(seed, 24, shape, classes) for seed, name in enumerate(parts)}
    if METHODS[method].needs_base:
        options = {"base": mlp(99) if shape == (6,) else conv_net(99), **options}
    stage = {"method": method, **QUICK.get(method, {})}
    return fuse_modules(modules, stages=[stage], data=data, **options).module


def with_base(method: str, base: nn.Module) -> dict[str, nn.Module]:
    """What methods that take differences to a base have to be given as well."""
    return {"base": base} if METHODS[method].needs_base else {}


@fusing
@dtypes
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 4), build=builds, guard=st.sampled_from(["off", "report"]))
def test_copies_of_a_network_give_that_network(
    method: str, dtype: torch.dtype, seed: int, count: int, build: object, guard: str
) -> None:
    assert callable(build)
    original = build(seed).to(dtype)
    copies = [copy.deepcopy(original) for _ in range(count)]
    result = fused(copies, method, guard=guard, **with_base(method, original))
    for name, tensor in original.state_dict().items():
        found = result.state_dict()[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), name


@fusing
def test_copies_of_a_float64_network_give_that_network(method: str) -> None:
    original = initialise(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)).double(), 3)
    with torch.no_grad():
        for tensor in original.state_dict().values():  # digits beyond float32
            tensor.mul_(1 + torch.rand(tensor.shape, generator=random(4), dtype=torch.float64) / 3)
    copies = [copy.deepcopy(original) for _ in range(3)]
    base = with_base(method, original)
    result = fused(copies, method, guard="off", compute_dtype="float64", **base)
    for name, tensor in original.state_dict().items():
        assert torch.equal(result.state_dict()[name], tensor), name


@methods
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 3), build=builds)
def test_names_shapes_and_dtypes_are_kept_and_inputs_untouched(
    method: str, seed: int, count: int, build: object
) -> None:
    assert callable(build)
    modules = [build(seed + place) for place in range(count)]
    modules[0].train()
    kept = [copy.deepcopy(module.state_dict()) for module in modules]
    result = fused(modules, method)
    assert list(result.state_dict()) == list(kept[0])
    assert not result.training
    assert modules[0].training
    for name, tensor in result.state_dict().items():
        assert (tensor.shape, tensor.dtype) == (kept[0][name].shape, kept[0][name].dtype)
        assert torch.isfinite(tensor).all()
    for module, state in zip(modules, kept, strict=True):
        assert all(parameter.requires_grad for parameter in module.parameters())
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


@fair
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**31))
def test_two_sources_may_be_swapped(method: str, seed: int) -> None:
    one, other = mlp(seed), mlp(seed + 1)
    first, second = fused([one, other], method, guard="off"), fused([other, one], method, guard="off")
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@methods
def test_networks_of_another_shape_are_refused(method: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        fused([mlp(0), mlp(0, (6, 7, 5, 4))], method)
    assert {problem.code for problem in caught.value.problems} == {"sources.mismatch"}


@methods
def test_one_source_is_refused(method: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        fused([mlp(0)], method)
    assert "recipe.too_few_sources" in {problem.code for problem in caught.value.problems}


@pytest.mark.parametrize("method", sorted(name for name, method in METHODS.items() if isinstance(method, TensorMethod)))
@dtypes
@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(2, 4),
    shapes=st.lists(st.sampled_from([(), (0,), (3, 0), (1,), (5,), (2, 3), (2, 3, 4)]), min_size=1, max_size=4),
)
def test_a_per_tensor_method_takes_any_state_dict_of_any_shape(
    method: str, dtype: torch.dtype, seed: int, count: int, shapes: list[tuple[int, ...]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state = {f"t{at}": torch.randn(shape, generator=random(seed + at)).to(dtype) for at, shape in enumerate(shapes)}
        paths = [save_state(folder / f"s{place}", state) for place in range(count)]
        sources = [{"name": path.name, "checkpoint": str(path)} for path in paths]
        base = {"base": sources[0]["checkpoint"]} if METHODS[method].needs_base else {}
        fuse({"sources": sources, "stages": [{"method": method}], **base}, folder / "out")
        found = read_output(folder / "out")
        assert found.keys() == state.keys()
        for tensor_name, tensor in state.items():
            assert found[tensor_name].dtype == dtype
            assert torch.equal(found[tensor_name], tensor)


def test_the_table_lists_every_method_in_the_folder_under_its_file_s_name() -> None:
    folder = Path(package.__path__[0])
    files = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert files - {"__init__", "contract", "catalogue"} == set(METHODS)
    assert all(name == method.name for name, method in METHODS.items())


def test_the_committed_catalogue_is_the_table_s() -> None:
    assert json.loads(catalogue.PATH.read_text()) == catalogue.build()
