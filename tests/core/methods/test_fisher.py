from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cogram_core import fuse_modules
from cogram_core.evaluation.datasets import Dataset
from cogram_core.mixing import unpack_shares
from cogram_core.networks.network import Network
from cogram_core.statistics import fisher_batches as module_under_test
from cogram_core.statistics.fisher import diagonal_fisher
from cogram_core.statistics.fisher_directions import Estimator
from cogram_core.trace import Decision
from tests.core.factories import conv_net, initialise, mlp, points, random

Build = Callable[[int], nn.Module]
seeds = st.integers(0, 2**31)


def deep(seed: int) -> nn.Module:
    """A network with several kinds of layers and activations."""
    network = nn.Sequential(
        nn.Linear(6, 5),
        nn.BatchNorm1d(5),
        nn.Tanh(),
        nn.LayerNorm(5),
        nn.Linear(5, 4, bias=False),
        nn.GELU(),
        nn.Linear(4, 4),
    )
    return initialise(network, seed)


def data_for(build: Build, seed: int, count: int) -> tuple[Tensor, Tensor]:
    return points(seed, count, (1, 4, 4), 3) if build is conv_net else points(seed, count)


def naive_fisher(module: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """E_x Σ_y p_y (∇ log p_y)², one backward pass an example and class, in float64."""
    module = trainable_copy(module).double()
    named = dict(module.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for example in inputs.double() if inputs.is_floating_point() else inputs:
        for label in range(int(module(example[None]).shape[1])):
            log_p = torch.log_softmax(module(example[None])[0], dim=0)
            gradients = torch.autograd.grad(log_p[label], list(named.values()))
            for name, gradient in zip(named, gradients, strict=True):
                total[name] += log_p[label].detach().exp() * gradient**2
    return {name: value / len(inputs) for name, value in total.items()}


def trainable_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).eval().requires_grad_(True)


def engine_fisher(
    module: nn.Module, inputs: Tensor, targets: Tensor | None = None, estimator: Estimator = "exact", seed: int = 0
) -> dict[str, Tensor]:
    network = Network(trainable_copy(module), inputs[:1])
    classes = torch.zeros(len(inputs), dtype=torch.int64)  # which take no part
    data = Dataset(inputs, classes if targets is None else targets)
    return diagonal_fisher(network, data, len(inputs), estimator, seed)


@pytest.mark.parametrize("build", [mlp, conv_net, deep])
@settings(deadline=None, max_examples=3)
@given(seed=seeds)
def test_it_is_the_exact_diagonal_fisher_of_every_example_and_class(build: Build, seed: int) -> None:
    module, (inputs, _) = build(seed), data_for(build, seed, 7)
    expected = naive_fisher(module, inputs)
    double = engine_fisher(module.double(), inputs.double())
    single = engine_fisher(module.float(), inputs)
    assert double.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(double[name], value, rtol=1e-9, atol=1e-15), name
        assert single[name].dtype == torch.float64
        assert torch.allclose(single[name], value, rtol=1e-5, atol=1e-5 * float(value.max())), name


class Attending(nn.Module):
    """Token scores, or with ``pooled`` class scores, by attention written with torch's own function."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.tokens, self.mix, self.norm = nn.Embedding(7, 6), nn.Linear(6, 18), nn.LayerNorm(6)
        self.head, self.pooled = nn.Linear(6, 4 if pooled else 7), pooled

    def forward(self, ids: Tensor) -> Tensor:
        found = self.tokens(ids)
        parts = (part.unflatten(-1, (2, 3)).transpose(1, 2) for part in self.mix(self.norm(found)).chunk(3, -1))
        attended = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        found = found + attended.transpose(1, 2).flatten(2)
        scores: Tensor = self.head(found.mean(1) if self.pooled else found)
        return scores


class Encoding(nn.Module):
    """Class scores by torch's own encoder layer, which takes another way where nothing needs a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 6)
        self.encoder = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.tokens(ids)).mean(1))
        return scores


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.allclose(found[name], value, rtol=1e-8, atol=1e-15) for name, value in expected.items())


@pytest.mark.parametrize("elements", [1, 700, 2**23])
@pytest.mark.parametrize("build", [lambda: Attending(True), Encoding])
def test_attention_gives_the_exact_fisher_too(
    build: Callable[[], nn.Module], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_under_test, "_ACTIVATIONS", elements)
    module, ids = initialise(build(), 3).double(), torch.randint(0, 7, (5, 6), generator=random(0))
    assert close(engine_fisher(module, ids), naive_fisher(module, ids))


@pytest.mark.parametrize("elements", [1, 300, 2**23])
@pytest.mark.parametrize("shape", [(4,), (2, 2), ()])
def test_the_fisher_of_values_is_the_sum_of_squared_gradients_of_the_outputs(
    elements: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_under_test, "_ACTIVATIONS", elements)
    last = nn.Flatten(0) if shape == () else nn.Unflatten(1, shape)
    module = nn.Sequential(mlp(2, (6, 5, 4 if shape else 1)), last).double()
    inputs, values = points(2, 6)[0].double(), torch.zeros(6, *shape, dtype=torch.float64)
    trainable = trainable_copy(module)
    named = dict(trainable.named_parameters())
    expected = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for example in inputs:
        for place in range(4 if shape else 1):
            output = trainable(example[None]).flatten()[place]
            for name, gradient in zip(named, torch.autograd.grad(output, list(named.values())), strict=True):
                expected[name] += gradient**2 / len(inputs)
    assert close(engine_fisher(module, inputs, values), expected)


@pytest.mark.parametrize("elements", [1, 2**23])
def test_the_fisher_of_token_data_squares_the_gradient_of_each_sequence(
    elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_under_test, "_ACTIVATIONS", elements)
    module, ids = initialise(Attending(False), 4).double(), torch.randint(0, 7, (5, 6), generator=random(1))
    labels = torch.where(torch.rand(5, 6, generator=random(2)) < 0.4, -100, ids)
    labels[:, 3] = ids[:, 3]
    trainable = trainable_copy(module)
    named = dict(trainable.named_parameters())
    expected = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    for sentence, label in zip(ids, labels.tolist(), strict=True):
        log_p = torch.log_softmax(trainable(sentence[None])[0], dim=-1)
        likelihood = sum(log_p[at - 1, label[at]] for at in range(1, 6) if label[at] != -100)
        gradients = torch.autograd.grad(likelihood, list(named.values()))
        for name, gradient in zip(named, gradients, strict=True):
            expected[name] += gradient**2 / len(ids)
    assert close(engine_fisher(module, ids, labels, "empirical"), expected)


def test_the_trace_says_what_kind_of_fisher_it_was() -> None:
    ids = torch.randint(0, 7, (6, 5), generator=random(0))
    _, decisions = merged([initialise(Attending(False), seed) for seed in (0, 1)], (ids, ids))
    assert {decision.reason for decision in decisions} == {
        "shares by Fisher information (sampled, a squared gradient a sequence)"
    }


def test_gradients_of_different_examples_never_cancel() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.zero_()
        module.bias.zero_()
    found = engine_fisher(module, torch.tensor([[1.0, 2.0], [-1.0, -2.0]]))
    # p = ½: Σ_y ½ (±½ x)² = x² / 4 for each row of the weight; a batch-summed gradient would be zero.
    assert found["weight"].flatten().tolist() == pytest.approx([0.25, 1.0, 0.25, 1.0], rel=1e-6)
    assert found["bias"].tolist() == pytest.approx([0.25, 0.25], rel=1e-6)


@pytest.mark.parametrize("elements", [1, 500, 2000])
def test_the_size_of_chunks_changes_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    module, (inputs, _) = mlp(1), points(1, 20)
    whole = engine_fisher(module, inputs)
    monkeypatch.setattr(module_under_test, "_ACTIVATIONS", elements)
    for name, value in engine_fisher(module, inputs).items():
        assert torch.allclose(value, whole[name], rtol=1e-5, atol=1e-12)


def merged(
    modules: list[nn.Module], data: tuple[Tensor, Tensor], **params: object
) -> tuple[dict[str, Tensor], list[Decision]]:
    stage = {"method": "fisher", **params}
    result = fuse_modules(modules, stages=[stage], data={"evaluation": data}, guard="off")
    return result.module.state_dict(), list(result.trace.decisions())


def states(modules: list[nn.Module], name: str) -> list[Tensor]:
    return [module.state_dict()[name].double() for module in modules]


@pytest.mark.parametrize("build", [mlp, conv_net])
@pytest.mark.parametrize("normalize", [False, True])
@settings(deadline=None, max_examples=2)
@given(seed=seeds, count=st.integers(2, 3))
def test_the_merge_follows_the_formula(build: Build, normalize: bool, seed: int, count: int) -> None:
    modules, data = [build(seed + place) for place in range(count)], data_for(build, seed, 9)
    found, _ = merged(modules, data, normalize=normalize)
    fishers = [naive_fisher(module, data[0]) for module in modules]
    if normalize:
        norms = [sum(float((value**2).sum()) for value in fisher.values()) ** 0.5 for fisher in fishers]
        fishers = [{k: v / norm for k, v in fisher.items()} for fisher, norm in zip(fishers, norms, strict=True)]
    largest = max(float(value.max()) for fisher in fishers for value in fisher.values())
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            continue
        values = states(modules, name)
        importance = [fisher[name] + 1e-10 * largest if name in fisher else torch.ones(()) for fisher in fishers]
        total = torch.stack([w.expand_as(v) for w, v in zip(importance, values, strict=True)]).sum(0)
        exact = sum((w * v for w, v in zip(importance, values, strict=True)), torch.zeros(())) / total
        spread = torch.stack(values).amax(0) - torch.stack(values).amin(0)
        # A share's rounding, float32 shares of nearly equal importance, and the result's own rounding.
        assert ((tensor.double() - exact).abs() <= spread * count * 2.0**-15 + exact.abs() * 2.0**-23 + 1e-9).all(), (
            name
        )


def test_the_recorded_shares_are_those_of_each_weight() -> None:
    modules, data = [mlp(3), mlp(4)], points(3, 9)
    found, decisions = merged(modules, data)
    assert [decision.layer for decision in decisions] == list(found)
    for decision in decisions:
        one, other = states(modules, decision.layer)
        assert decision.payload is not None
        share = unpack_shares(decision.payload, one.shape, 2)[0].double() / 2**15
        assert torch.allclose(share * one + (1 - share) * other, found[decision.layer].double(), atol=1e-6)
        assert decision.shares == pytest.approx([float(share.mean()), 1 - float(share.mean())], abs=1e-12)


def test_parameters_that_no_prediction_depends_on_get_the_plain_mean() -> None:
    modules = [mlp(5), mlp(6)]
    with torch.no_grad():
        for module in modules:
            module.get_submodule("2").weight[3] = 0.0
            module.get_submodule("2").bias[3] = -1.0  # a dead unit: nothing depends on its row or on what it feeds
    found, _ = merged(modules, points(5, 12))
    for name, part in (("2.weight", 3), ("4.weight", (slice(None), 3))):
        one, other = states(modules, name)
        spread = (one - other).abs()[part]
        assert ((found[name].double() - (one + other) / 2).abs()[part] <= spread * 2.0**-15 + 1e-7).all()


def test_statistics_of_normalisation_get_the_mean_and_say_so() -> None:
    modules = [conv_net(1), conv_net(2)]
    found, decisions = merged(modules, points(1, 9, (1, 4, 4), 3))
    reasons = {decision.layer: decision.reason for decision in decisions}
    for name in ("1.running_mean", "1.running_var"):
        one, other = states(modules, name)
        assert torch.allclose(found[name].double(), (one + other) / 2, atol=1e-6)
        assert reasons[name].startswith("weighted mean")
    assert reasons["0.weight"] == "shares by Fisher information"


def test_a_source_whose_predictions_are_no_numbers_gives_the_mean_and_the_trace_says_so() -> None:
    modules = [mlp(1), mlp(2)]
    with torch.no_grad():
        modules[1].get_submodule("0").weight.fill_(3e38)  # finite, but it overflows
    found, decisions = merged(modules, points(1, 9))
    assert all(decision.reason.startswith("weighted mean") for decision in decisions)
    one, other = states(modules, "4.weight")
    assert torch.allclose(found["4.weight"].double(), (one + other) / 2, atol=1e-6)


def test_an_overflow_in_one_tensor_leaves_the_others_their_shares() -> None:
    inputs, targets = points(1, 20)
    inputs[:, 0] = 1e21  # its squared gradient is beyond float32
    modules = [mlp(1), mlp(2)]
    with torch.no_grad():
        for place, module in enumerate(modules):
            module.get_submodule("0").weight[:, 0] = 1e-21 * (place + 1)
    found, decisions = merged(modules, (inputs, targets))
    reasons = {decision.layer: decision.reason for decision in decisions}
    assert reasons.pop("0.weight").startswith("weighted mean")
    assert set(reasons.values()) == {"shares by Fisher information"}
    for name, tensor in found.items():
        one, other = states(modules, name)
        assert (tensor.double() >= torch.minimum(one, other) - 1e-7).all(), name
        assert (tensor.double() <= torch.maximum(one, other) + 1e-7).all(), name


def test_a_network_without_trainable_tensors_gets_the_mean() -> None:
    modules = [initialise(nn.Sequential(nn.BatchNorm1d(4, affine=False)), seed) for seed in (1, 2)]
    found, _ = merged(modules, points(0, 8, (4,)))
    one, other = states(modules, "0.running_mean")
    assert torch.allclose(found["0.running_mean"].double(), (one + other) / 2, atol=1e-6)


def test_examples_are_drawn_evenly_over_the_data() -> None:
    modules, (inputs, targets) = [mlp(7), mlp(8)], points(7, 40)
    few, _ = merged(modules, (inputs, targets), examples=8)
    same, _ = merged(modules, (inputs[::5], targets[::5]))
    assert all(torch.equal(few[name], same[name]) for name in few)
