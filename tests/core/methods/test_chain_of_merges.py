from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cogram_core import fuse, fuse_modules
from tests.core.factories import conv_net, initialise, mlp, points, random, read_output, recipe_document, save_data
from tests.core.methods.families import FAMILIES
from tests.core.methods.naive_chain import array, naive_chain, with_ones

CHAIN = {"method": "chain_of_merges"}


def chain(modules: list[nn.Module], data: tuple[Tensor, Tensor], stage: dict[str, Any] = CHAIN, **options: Any) -> Any:
    return fuse_modules(modules, stages=[stage], data={"evaluation": data}, guard="off", **options)


def agree(found: nn.Module, exact: nn.Module, tolerance: float) -> None:
    for name, tensor in exact.state_dict().items():
        difference = (found.state_dict()[name].double() - tensor).abs().max()
        assert difference <= tolerance * tensor.abs().max(), name


class Block(nn.Module):
    """Attention with separate maps that share an input, norms, a residual stream, and an embedding of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
        self.query, self.key, self.value = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.between, self.out = nn.LayerNorm(6), nn.Linear(6, 6, bias=False)
        self.after, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 9), nn.Linear(9, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.tokens(ids)
        given = self.norm(hidden)
        # A norm between maps of one input, as some architectures have for queries and keys.
        query = self.between(self.query(given))
        mixed = functional.scaled_dot_product_attention(query, self.key(given), self.value(given))
        hidden = hidden + self.out(mixed)
        hidden = hidden + self.down(functional.gelu(self.up(self.after(hidden))))
        return torch.as_tensor(self.head(hidden.mean(1)))


BLOCK = ["norm", "query", "key", "value", "between", "out", "after", "up", "down", "head"]


def blocks(seed: int, count: int = 2) -> list[nn.Module]:
    """Networks of one start, with the same embedding, so that its average is no question."""
    start, found = initialise(Block(), seed), []
    for place in range(count):
        moved, generator = copy.deepcopy(start), random(seed + place + 1)
        with torch.no_grad():
            for name, tensor in moved.named_parameters():
                if name != "tokens.weight":
                    tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
        found.append(moved)
    return found


def sentences(seed: int, count: int = 40) -> tuple[Tensor, Tensor]:
    generator = random(seed)
    return torch.randint(0, 7, (count, 5), generator=generator), torch.randint(0, 4, (count,), generator=generator)


@pytest.mark.parametrize("target", ["original", "propagated"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_transformer_block_is_what_running_all_again_after_every_layer_gives(target: str, seed: int) -> None:
    modules, data = blocks(seed), sentences(seed + 9)
    found = chain(modules, data, {**CHAIN, "target": target, "ridge": 1e-3}, compute_dtype="float64")
    exact = naive_chain(modules, [data[0]] * 2, [1, 1], BLOCK, 1e-3, target)
    agree(found.module, exact, 2e-6)  # as far as the output is of float32
    rows = {row.layer: row.reason for row in found.trace.decisions()}
    assert rows["query.weight"] == rows["key.bias"] == rows["value.weight"] != rows["out.weight"]


def test_a_deep_linear_network_is_the_joint_least_squares_solution_layer_by_layer(tmp_path: Path) -> None:
    def build(seed: int) -> nn.Module:
        return initialise(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 4), nn.Linear(4, 4)), seed)

    modules, data = [build(seed) for seed in (1, 2, 3)], [points(seed, 50 + seed) for seed in (4, 5, 6)]
    weights = [1.0, 3.0, 0.5]
    document = recipe_document(tmp_path, modules, [{**CHAIN, "ridge": 1e-4}], guard="off")
    for place, source in enumerate(document["sources"]):
        path = save_data(tmp_path / f"data-{place}.safetensors", data[place])
        source |= {"data": str(path), "weight": weights[place]}
    fuse(document, tmp_path / "out")
    found = read_output(tmp_path / "out")
    exact = naive_chain(modules, [inputs for inputs, _ in data], weights, ["0", "1", "2", "3"], 1e-4)
    for name, tensor in exact.state_dict().items():
        assert (found[name] - tensor).abs().max() <= 2e-3 * tensor.abs().max(), name
    document["compute_dtype"] = "float64"
    fuse(document, tmp_path / "double")
    for name, tensor in exact.state_dict().items():
        # The weights stand in the trace as multiples of 2⁻¹⁶.
        assert (read_output(tmp_path / "double")[name] - tensor).abs().max() <= 2e-4 * tensor.abs().max(), name


def test_without_a_ridge_it_gives_the_sources_function_where_one_network_can() -> None:
    # Two sources that compute the same in other ways: hidden units are scaled, and scaled back.
    one = mlp(3, (6, 5, 4))
    other = copy.deepcopy(one)
    scale = torch.tensor([0.5, 2.0, 4.0, 0.25, 1.5])
    with torch.no_grad():
        other[0].weight *= scale[:, None]
        other[0].bias *= scale
        other[2].weight /= scale
    data = points(7, 120)
    merged = chain([one, other], data).module
    assert torch.allclose(merged(data[0]), one(data[0]), atol=2e-2)
    average = fuse_modules([one, other], stages="linear").module
    assert not torch.allclose(average(data[0]), one(data[0]), atol=0.2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options",
    [{}, {"target": "propagated", "task_weights": "gram_coherence", "rest": "fisher"}],
    ids=["usual", "others"],
)
def test_any_module_tree_is_merged_and_copies_of_one_network_give_it(family: str, options: dict[str, Any]) -> None:
    modules, data = FAMILIES[family].modules(3), FAMILIES[family].data(5)
    result = chain(modules, data, {**CHAIN, **options})
    rows = list(result.trace.decisions())
    floating = [name for name, tensor in modules[0].state_dict().items() if tensor.is_floating_point()]
    assert sorted(row.layer for row in rows) == sorted(floating)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.module.state_dict().values())
    same = chain([modules[0], copy.deepcopy(modules[0])], data, {**CHAIN, **options}).module.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in modules[0].state_dict().items())


def test_batch_normalisation_gets_the_statistics_of_what_arrives_and_the_best_scale_and_shift() -> None:
    modules, data = [conv_net(1), conv_net(2)], points(3, 50, (1, 4, 4), 3)
    merged = chain(modules, data, {**CHAIN, "ridge": 0.0}, compute_dtype="float64").module
    with torch.no_grad():
        arriving = merged[0](data[0]).double()
        wanted = [module[1](module[0](data[0])).double() for module in modules]
    assert torch.allclose(merged[1].running_mean.double(), arriving.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(merged[1].running_var.double(), arriving.var((0, 2, 3)), rtol=1e-5)
    normal = (arriving - arriving.mean((0, 2, 3), keepdim=True)) / torch.sqrt(
        arriving.var((0, 2, 3), keepdim=True) + merged[1].eps
    )
    for channel in range(3):
        column = array(normal[:, channel].reshape(-1, 1))
        target = np.mean([array(y[:, channel].reshape(-1, 1)) for y in wanted], axis=0)
        scale, shift = np.linalg.lstsq(with_ones(column), target, rcond=None)[0][:, 0]
        assert float(merged[1].weight.detach()[channel]) == pytest.approx(scale, abs=1e-5)
        assert float(merged[1].bias.detach()[channel]) == pytest.approx(shift, abs=1e-5)


def test_a_channel_that_never_varies_keeps_the_mean_of_the_sources_statistics() -> None:
    modules, data = [conv_net(1), conv_net(2)], points(3, 30, (1, 4, 4), 3)
    for module in modules:
        with torch.no_grad():
            module[0].weight[1], module[0].bias[1] = 0.0, 0.5
    merged = chain(modules, data).module
    mean = (modules[0][1].running_var[1] + modules[1][1].running_var[1]) / 2
    assert float(merged[1].running_var[1]) == pytest.approx(float(mean))


def test_embeddings_are_averaged_by_the_counts_of_their_tokens_in_each_source_s_data() -> None:
    modules = [initialise(Block(), seed) for seed in (1, 2)]
    ids = [torch.tensor([[0, 0, 1, 2, 2]] * 3), torch.tensor([[0, 1, 1, 1, 3]] * 2)]
    labels = torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    result = fuse_modules(
        modules,
        stages=[CHAIN],
        source_data=[(ids[0], labels[0]), (ids[1], labels[1])],
        guard="off",
    )
    found = result.module.state_dict()["tokens.weight"]
    shares = [2 / 3, 1 / 4, 1.0, 0.0, 0.5, 0.5, 0.5]
    one, other = (module.state_dict()["tokens.weight"] for module in modules)
    for token, share in enumerate(shares):
        assert torch.allclose(found[token], share * one[token] + (1 - share) * other[token], atol=1e-6), token


def test_gram_coherence_weighs_a_source_by_the_correlations_of_its_inputs() -> None:
    modules = [initialise(nn.Sequential(nn.Linear(3, 2)), seed) for seed in (1, 2)]
    generator = random(5)
    apart = torch.randn(40, 3, generator=generator)
    alike = torch.randn(40, 1, generator=generator) * torch.tensor([1.0, -2.0, 3.0]) + 0.1 * apart
    labels = torch.randint(0, 2, (40,), generator=generator)
    result = fuse_modules(
        modules,
        stages=[{**CHAIN, "task_weights": "gram_coherence"}],
        source_data=[(apart, labels), (alike, labels)],
        guard="off",
    )
    coherences = []
    for rows in (array(apart), array(alike)):
        gram = rows.T @ rows
        normal = gram / np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
        coherences.append((np.abs(normal).sum() - 3) / 6)
    shares = next(iter(result.trace.decisions())).shares
    assert shares == pytest.approx([c / sum(coherences) for c in coherences], abs=2**-15)


def dead(module: nn.Module) -> nn.Module:
    """A hidden unit that never fires, and one that is another's double."""
    with torch.no_grad():
        module[0].weight[0], module[0].bias[0] = 0.0, -1.0
        module[0].weight[2], module[0].bias[2] = module[0].weight[1], module[0].bias[1]
    return module


@pytest.mark.parametrize("ridge", [0.0, 1e-4])
@pytest.mark.parametrize("stage", ["chain_of_merges", "regmean"])
@pytest.mark.parametrize(("count", "dtype"), [(60, "float32"), (60, "float16"), (3, "float32"), (1, "float32")])
def test_dead_and_double_units_and_few_rows_never_break_it(stage: str, ridge: float, count: int, dtype: str) -> None:
    modules = [dead(mlp(seed, (6, 9, 5, 4))).to(getattr(torch, dtype)) for seed in (1, 2)]
    inputs, targets = points(3, count)
    given = {"method": stage, "ridge": ridge} | ({"alpha": 1.0} if stage == "regmean" else {})
    result = chain(modules, (inputs, targets), given)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in result.module.state_dict().values())
    reasons = [row.reason for row in result.trace.decisions() if row.layer == "2.weight"]
    assert ("fell back on the pseudo-inverse" in reasons[0]) == (ridge == 0)
    assert all(tensor.dtype == getattr(torch, dtype) for tensor in result.module.state_dict().values())


def test_activations_that_overflow_leave_the_weighted_mean_and_say_so() -> None:
    modules = [mlp(seed, (6, 5, 4)) for seed in (1, 2)]
    with torch.no_grad():
        for module in modules:
            module[0].weight *= 1e30
    inputs, targets = points(3, 20)
    result = chain(modules, (inputs * 1e6, targets))
    rows = {row.layer: row for row in result.trace.decisions()}
    assert "overflow" in rows["2.weight"].reason
    assert torch.allclose(result.module[2].weight, (modules[0][2].weight + modules[1][2].weight) / 2)
