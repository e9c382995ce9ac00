from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cogram_core.errors import NetworkError
from cogram_core.networks.sequential import build
from cogram_core.recipe import SequentialNetwork
from cogram_core.recipe.layers import AnyLayer, expected_tensors, named_layers

small = st.integers(1, 6)
flags = st.booleans()
pair = small | st.tuples(small, small).map(list)


def _convolution(draw: st.DrawFn, kernel: st.SearchStrategy[Any]) -> dict[str, Any]:
    groups = draw(st.integers(1, 3))
    return {
        "in_channels": groups * draw(small),
        "out_channels": groups * draw(small),
        "groups": groups,
        "kernel_size": draw(kernel),
        "padding": draw(st.sampled_from([0, 2, "same", "valid"])),
        "dilation": draw(st.integers(1, 2)),
        "bias": draw(flags),
    }


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Any]:
    """Any layer but a residual, with random arguments."""
    kind = draw(st.sampled_from(sorted(_ARGUMENTS)))
    return {"type": kind, **_ARGUMENTS[kind](draw)}


def _linear(draw: st.DrawFn) -> dict[str, Any]:
    return {"in_features": draw(small), "out_features": draw(small), "bias": draw(flags)}


def _norm(draw: st.DrawFn) -> dict[str, Any]:
    return {"num_features": draw(small), "affine": draw(flags), "eps": draw(st.floats(1e-6, 1e-2))}


def _layer_norm(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(small | st.lists(small, min_size=1, max_size=3))
    return {"normalized_shape": shape, "elementwise_affine": draw(flags), "bias": draw(flags)}


def _group_norm(draw: st.DrawFn) -> dict[str, Any]:
    groups = draw(small)
    return {"num_groups": groups, "num_channels": groups * draw(small), "affine": draw(flags)}


def _embedding(draw: st.DrawFn) -> dict[str, Any]:
    return {"num_embeddings": draw(small), "embedding_dim": draw(small)}


def _pool(draw: st.DrawFn) -> dict[str, Any]:
    return {"kernel_size": draw(pair), "stride": draw(st.none() | pair)}


def _nothing(draw: st.DrawFn) -> dict[str, Any]:
    return {}


_ARGUMENTS: dict[str, Any] = {
    "linear": _linear,
    "conv1d": lambda draw: _convolution(draw, small),
    "conv2d": lambda draw: _convolution(draw, pair),
    "batchnorm1d": _norm,
    "batchnorm2d": _norm,
    "layernorm": _layer_norm,
    "groupnorm": _group_norm,
    "embedding": _embedding,
    "maxpool2d": _pool,
    "avgpool2d": _pool,
    "adaptiveavgpool2d": lambda draw: {"output_size": draw(pair)},
    "unflatten": lambda draw: {"dim": 1, "unflattened_size": draw(st.lists(small, min_size=1, max_size=3))},
    "dropout": lambda draw: {"p": draw(st.floats(0, 1))},
    "gelu": lambda draw: {"approximate": draw(st.sampled_from(["none", "tanh"]))},
    "flatten": _nothing,
    "relu": _nothing,
    "silu": _nothing,
    "tanh": _nothing,
    "sigmoid": _nothing,
    "identity": _nothing,
}


def parsed(*given: dict[str, Any]) -> tuple[AnyLayer, ...]:
    return SequentialNetwork.model_validate({"kind": "sequential", "layers": given}).layers


def made(*given: dict[str, Any]) -> nn.Module:
    return build(parsed(*given), torch.float32, torch.device("cpu"))


def floating(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in module.state_dict().items() if t.is_floating_point()}


def test_the_random_layers_are_of_every_type() -> None:
    (spec,) = parsed({"type": "relu"})
    known = {member.__name__.lower() for member in AnyLayer.__args__}
    assert spec.torch_class.lower() in known
    assert known == {*_ARGUMENTS, "residual"}


@settings(deadline=None, max_examples=200)
@given(given=layers())
def test_a_description_knows_the_tensors_of_its_torch_module(given: dict[str, Any]) -> None:
    chain = parsed(given, {**given, "name": "deep.down"})
    module = build(chain, torch.float64, torch.device("cpu"))
    assert floating(module) == expected_tensors(chain)
    real = getattr(nn, chain[0].torch_class)(**chain[0].arguments())
    assert {f"0.{name}": shape for name, shape in floating(real).items()} == {
        name: shape for name, shape in floating(module).items() if name.startswith("0.")
    }
    assert all(t.dtype == torch.float64 for t in module.state_dict().values() if t.is_floating_point())


INPUTS = {
    "linear": lambda spec: (spec.in_features,),
    "conv1d": lambda spec: (spec.in_channels, 16),
    "conv2d": lambda spec: (spec.in_channels, 16, 16),
    "batchnorm1d": lambda spec: (spec.num_features,),
    "batchnorm2d": lambda spec: (spec.num_features, 2, 2),
    "groupnorm": lambda spec: (spec.num_channels, 2),
    "layernorm": lambda spec: (
        (spec.normalized_shape,) if isinstance(spec.normalized_shape, int) else spec.normalized_shape
    ),
    "unflatten": lambda spec: (torch.Size(spec.unflattened_size).numel(),),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@settings(deadline=None, max_examples=150)
@given(given=layers())
def test_a_built_layer_computes_what_its_torch_module_does(given: dict[str, Any]) -> None:
    (spec,) = parsed(given)
    shape = INPUTS.get(given["type"], lambda _: (2, 8, 8))(spec)
    torch.manual_seed(0)
    real = getattr(nn, spec.torch_class)(**spec.arguments()).eval()
    chain = made(given).eval()
    chain.load_state_dict({f"0.{name}": tensor for name, tensor in real.state_dict().items()})
    example = torch.randn(2, *shape)
    if given["type"] == "embedding":
        example = torch.randint(spec.num_embeddings, (2, 5))
    assert torch.equal(chain(example), real(example))


def test_a_chain_runs_its_layers_in_order_under_their_names() -> None:
    linear = {"type": "linear", "in_features": 2, "out_features": 2, "bias": False}
    module = made({**linear, "name": "body.in"}, {"type": "relu"}, {**linear, "name": "body.out"})
    assert list(module.state_dict()) == ["body.in.weight", "body.out.weight"]
    module.load_state_dict({"body.in.weight": -torch.eye(2), "body.out.weight": 3 * torch.eye(2)})
    assert module(torch.tensor([[1.0, -2.0]])).tolist() == [[0.0, 6.0]]


LINEAR = {"type": "linear", "in_features": 2, "out_features": 2}


@pytest.mark.parametrize("name", ["forward", "training", "_order", "forward.deep", "_modules.x"])
def test_a_name_that_torch_uses_itself_is_refused(name: str) -> None:
    with pytest.raises(NetworkError, match="correct its description") as caught:
        made(LINEAR, {**LINEAR, "name": name})
    assert [problem.location for problem in caught.value.problems] == ["network.layers[1]"]


@pytest.mark.parametrize("names", [("a.b", "a"), ("a", "a.weight"), ("a", "a.weight.b")])
def test_layers_that_stand_in_each_others_place_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(NetworkError) as caught:
        made({**LINEAR, "name": names[0]}, {**LINEAR, "name": names[1]})
    assert caught.value.problems[0].code == "network.invalid_layer"


def test_a_layer_inside_anothers_name_keeps_both_tensors() -> None:
    chain = parsed({**LINEAR, "name": "a"}, {**LINEAR, "name": "a.b"})
    assert floating(build(chain, torch.float32, torch.device("cpu"))) == expected_tensors(chain)


def test_arguments_that_only_torch_can_judge_are_refused_with_the_layers_place() -> None:
    (spec,) = parsed({"type": "Conv2d", "in_channels": 2, "out_channels": 2, "kernel_size": 3})
    broken = spec.model_copy(update={"groups": 3})
    with pytest.raises(NetworkError, match=r"network\.layers\[0\].*Conv2d.*groups") as caught:
        build((broken,), torch.float32, torch.device("cpu"))
    assert caught.value.problems[0].code == "network.invalid_layer"


def test_named_layers_are_named_by_their_place_where_they_have_no_name() -> None:
    chain = parsed({"type": "relu"}, {"type": "tanh", "name": "x"}, {"type": "relu"})
    assert [name for name, _ in named_layers(chain)] == ["0", "x", "2"]


class Block(nn.Module):
    """What a recipe calls residual, written by hand."""

    def __init__(self, layers: nn.Sequential, shortcut: nn.Sequential | None) -> None:
        super().__init__()
        self.layers = layers
        self.shortcut = shortcut

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs) + (inputs if self.shortcut is None else self.shortcut(inputs))


def linear(into: int, out: int) -> dict[str, Any]:
    return {"type": "Linear", "in_features": into, "out_features": out}


def test_residuals_compute_what_hand_written_ones_do_under_their_tensor_names() -> None:
    inner = {"type": "residual", "name": "skip", "layers": [linear(4, 4), {"type": "tanh"}]}
    wide = {"type": "Residual", "layers": [linear(4, 6), {"type": "relu"}, linear(6, 7)], "shortcut": [linear(4, 7)]}
    given = ({"type": "Embedding", "num_embeddings": 9, "embedding_dim": 4}, inner, wide, {"type": "gelu"})
    whole = nn.Sequential(
        nn.Embedding(9, 4),
        Block(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), None),
        Block(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 7)), nn.Sequential(nn.Linear(4, 7))),
        nn.GELU(),
    )
    state = {name.replace("1.layers", "skip.layers"): tensor for name, tensor in whole.state_dict().items()}
    module = made(*given)
    assert floating(module) == expected_tensors(parsed(*given)) == {name: tuple(t.shape) for name, t in state.items()}
    assert {"skip.layers.0.bias", "2.layers.2.weight", "2.shortcut.0.weight"} <= state.keys()
    module.load_state_dict(state)
    ids = torch.randint(9, (3, 5))
    assert torch.equal(module(ids), whole(ids))


def test_residuals_may_stand_inside_residuals() -> None:
    block: dict[str, Any] = linear(2, 2)
    for _ in range(8):
        block = {"type": "residual", "layers": [block]}
    module = made(block)
    deepest = "0." + 8 * "layers.0."
    module.load_state_dict({f"{deepest}weight": torch.eye(2), f"{deepest}bias": torch.zeros(2)})
    assert module(torch.tensor([[1.0, -3.0]])).tolist() == [[9.0, -27.0]]


def test_a_residual_that_would_broadcast_is_refused() -> None:
    module = made({"type": "residual", "layers": [linear(4, 1)]})
    with pytest.raises(ValueError, match=r"here \[1\] and \[4\]"):
        module(torch.zeros(3, 4))


def test_a_name_inside_a_residual_is_refused_with_its_place() -> None:
    for branch in ("layers", "shortcut"):
        given = {"type": "residual", "layers": [LINEAR], branch: [{"type": "relu"}, {**LINEAR, "name": "forward"}]}
        with pytest.raises(NetworkError) as caught:
            made({"type": "relu"}, given)
        assert [problem.location for problem in caught.value.problems] == [f"network.layers[1].{branch}[1]"]
