from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cogram_core import fuse_modules
from cogram_core.methods.align.activations import likenesses
from cogram_core.methods.align.assignment import best_order
from cogram_core.methods.align.moments import Moments
from cogram_core.methods.align.weights import WeightMatching
from cogram_core.networks.network import Network
from cogram_core.permuting import permuted, unpack_alignment
from cogram_core.trace import Decision
from tests.core.factories import Pair, conv_net, mlp, points, random, trained
from tests.core.methods.families import moved
from tests.core.networks.permutable import KINDS, OUTPUT, shuffled, symmetry_of
from tests.core.promises.replaying import Run

matches = pytest.mark.parametrize("match", ["activations", "weights"])
seeds = st.integers(0, 2**30)


def wide(seed: int) -> nn.Sequential:
    return mlp(seed, (6, 12, 9, 4))


def aligned(modules: Sequence[nn.Module], data: Pair, **params: object) -> tuple[nn.Module, list[Decision]]:
    """The average after alignment, and the rows that tell of that."""
    stages = [{"method": "align", **params}, "linear"]
    result = fuse_modules([*map(copy.deepcopy, modules)], stages=stages, data={"evaluation": data}, guard="off")
    return result.module, [decision for decision in result.trace.decisions() if decision.method == "align"]


def orders(rows: Sequence[Decision]) -> list[Tensor]:
    return [unpack_alignment(row.payload or b"")[1] for row in rows if row.action == "aligned"]


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def data_of(kind: str, seed: int, count: int = 60) -> Pair:
    inputs = KINDS[kind].inputs(seed, count)
    return inputs, inputs if KINDS[kind].tokens else torch.zeros(count, dtype=torch.int64)


@matches
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("build", [wide, conv_net])
def test_a_permuted_copy_merged_with_the_network_gives_the_network(match: str, build: object, seed: int) -> None:
    assert callable(build)
    module, data = build(seed), points(seed, 80, (1, 4, 4), 3) if build is conv_net else points(seed, 80)
    for tensor in module.parameters():
        tensor.data.abs_() if tensor.ndim == 1 else None  # no silent units, which nothing can tell apart
    copied = shuffled(module, symmetry_of(module, data[0]), seed)
    assert not equal(module, copied)
    assert equal(aligned([module, copied], data, match=match)[0], module)


@matches
@pytest.mark.parametrize("kind", ["three groups of channels", "residual", "squeezed", "grouped queries", "fused"])
def test_so_it_does_with_heads_gates_norms_and_residual_streams(match: str, kind: str) -> None:
    module, data = KINDS[kind].module(5), data_of(kind, 5)
    copied = shuffled(module, symmetry_of(module, data[0]), 7)
    assert not equal(module, copied)
    assert equal(aligned([module, copied], data, match=match)[0], module)


@matches
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_sources_that_are_matched_already_stay_as_they_are(match: str, kind: str) -> None:
    module, data = KINDS[kind].module(3), data_of(kind, 3)
    for others in ([module, module], [moved(module, 1, 0.01), moved(module, 2, 0.01)]):
        _, rows = aligned([module, *others], data, match=match)
        assert all(torch.equal(order, torch.arange(order.shape[1]).expand_as(order)) for order in orders(rows))
        assert len(orders(rows)) == len(KINDS[kind].groups)


@matches
@settings(deadline=None, max_examples=3)
@given(seed=seeds, kind=st.sampled_from(sorted(KINDS)))
def test_every_source_computes_what_it_did_and_the_reference_is_untouched(match: str, seed: int, kind: str) -> None:
    modules, data = [KINDS[kind].module(seed + place) for place in range(3)], data_of(kind, seed, 12)
    _, rows = aligned(modules, data, match=match, reference="module-1")
    inputs = data[0].double() if data[0].is_floating_point() else data[0]
    for place, module in enumerate(modules):
        changed = copy.deepcopy(module).double()
        state = changed.state_dict()
        for row in rows:
            if row.action == "aligned":
                axes, found = unpack_alignment(row.payload or b"")
                for axis in axes:
                    state[axis.tensor].copy_(permuted(state[axis.tensor].clone(), [(axis, found[place])]))
        with torch.no_grad():
            before, after = copy.deepcopy(module).double()(inputs), changed(inputs)
        assert torch.allclose(before, after, rtol=1e-9, atol=1e-9 * float(before.abs().max()))
        assert equal(module.double(), changed) or place != 1


def test_the_trace_names_what_was_aligned_and_what_was_left_alone() -> None:
    _, rows = aligned([wide(1), wide(2), wide(3)], points(0), reference=2)
    assert [(row.layer, row.kind, row.action) for row in rows] == [
        ("0", "layer", "aligned"),
        ("2", "layer", "aligned"),
        ("4", "layer", "skipped"),
    ]
    assert rows[2].reason == OUTPUT
    moved_units = int((orders(rows)[0] != torch.arange(12)).sum())
    assert rows[0].reason == f"{moved_units} of 24 units of the other sources moved to match those of module-2"


@matches
def test_networks_of_different_starts_can_be_averaged_once_they_are_aligned(match: str) -> None:
    data, test = points(3, 200), points(4, 400)
    sources = [trained(mlp(seed, (6, 24, 4)), data, 80) for seed in (1, 2)]

    def loss(module: nn.Module) -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(module(test[0]), test[1]))

    plain = fuse_modules([*map(copy.deepcopy, sources)], stages="linear", data={"evaluation": data}, guard="off").module
    assert loss(aligned(sources, data, match=match)[0]) < loss(plain)


def test_the_sources_own_data_serves_where_there_is_no_other() -> None:
    module = wide(1)
    own = [points(1, 50), points(2, 70)]
    copied = shuffled(module, symmetry_of(module, own[0][0]), 3)
    stages = [{"method": "align", "examples": 80}, "linear"]
    result = fuse_modules([module, copied], stages=stages, source_data=own, guard="off")
    assert equal(result.module, module)


@matches
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_silent_and_doubled_units_and_a_single_example_do_no_harm(match: str, dtype: torch.dtype) -> None:
    modules = [wide(1).to(dtype), wide(2).to(dtype)]
    with torch.no_grad():
        for module in modules:
            module.get_submodule("0").weight[3:6] = 0.0
            module.get_submodule("0").bias[3:6] = -1.0
            module.get_submodule("2").weight[1:3] = module.get_submodule("2").weight[4:5]
            module.get_submodule("2").bias[1:3] = module.get_submodule("2").bias[4:5]
    for count in (1, 2, 30):
        result, rows = aligned(modules, points(1, count), match=match)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in result.state_dict().values())
        assert len(orders(rows)) == 2
    assert equal(aligned([modules[0], modules[0]], points(1, 1), match=match)[0], modules[0])


def test_what_overflows_is_like_nothing_and_the_rest_is_matched_all_the_same() -> None:
    module, data = wide(1), points(1, 60)
    copied = shuffled(module, symmetry_of(module, data[0]), 1)
    modules = [module, copied]
    with torch.no_grad():
        for each in modules:
            each.get_submodule("4").weight.fill_(3e38)  # only the output overflows
    assert equal(aligned(modules, data)[0], module)
    with torch.no_grad():
        copied.get_submodule("0").weight.fill_(3e38)
    _, rows = aligned(modules, data)
    assert len(rows) == 3


class Fickle(nn.Module):
    """Treats its units alike as long as its weights are small."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first(inputs))
        turned = torch.cumsum(hidden, 1) if bool(self.first.weight.abs().max() > 50) else hidden
        return torch.as_tensor(self.last(turned))


def test_a_group_that_is_none_in_some_source_is_left_alone_in_all() -> None:
    modules = [Fickle(), Fickle(), Fickle()]
    with torch.no_grad():
        modules[1].first.weight[2, 1] = 60.0
    data = torch.randn(20, 4, generator=random(1)), torch.zeros(20, dtype=torch.int64)
    _, rows = aligned(modules, data)
    assert [(row.layer, row.action) for row in rows] == [("first", "skipped"), ("last", "skipped")]
    assert rows[0].reason == "permuting its units changes what module-1 computes"


def test_an_alignment_replays_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [{"method": "align", "match": "weights"}, {"method": "align"}, "fisher"]
    run = Run(tmp_path, [wide(1), wide(2), wide(3)], stages, guard="off")
    run.assert_replays(monkeypatch, tmp_path / "again")


@settings(deadline=None, max_examples=30)
@given(seed=seeds, units=st.integers(1, 6))
def test_an_order_is_the_best_of_all_orders(seed: int, units: int) -> None:
    table = torch.randn(units, units, generator=random(seed), dtype=torch.float64)
    best = max(sum(float(table[u, v]) for u, v in enumerate(order)) for order in itertools.permutations(range(units)))
    order = best_order(table)
    assert sorted(order.tolist()) == list(range(units))
    assert float(table[torch.arange(units), order].sum()) == pytest.approx(best, abs=1e-5 * units)


def test_units_stay_where_nothing_speaks_for_another_order() -> None:
    blocks = torch.block_diag(torch.ones(3, 3), torch.zeros(2, 2), torch.full((2, 2), torch.nan)).double()
    assert best_order(blocks).tolist() == list(range(7))
    assert best_order(torch.full((4, 4), torch.inf).double()).tolist() == list(range(4))
    assert best_order(torch.tensor([[0.9, 1.0], [1.0, 0.9]]).double()).tolist() == [1, 0]


@settings(deadline=None, max_examples=10)
@given(seed=seeds, rows=st.integers(1, 30), parts=st.integers(1, 3))
def test_likeness_of_single_features_is_the_correlation(seed: int, rows: int, parts: int) -> None:
    draw = np.random.default_rng(seed)
    one, other = draw.normal(size=(2, rows, 4)) * 3 + 100
    one[:, 2], other[:, 0] = 7.3, -0.1  # these never change
    sums = Moments.none(4, 1, torch.device("cpu"))
    for first, second in zip(np.array_split(one, parts), np.array_split(other, parts), strict=True):
        sums.add(torch.from_numpy(first)[:, :, None], torch.from_numpy(second)[:, :, None])
    expected = np.zeros((4, 4))
    for u, v in itertools.product(range(4), range(4)):
        spread = one[:, u].std() * other[:, v].std()
        if rows > 1 and u != 2 and v != 0:
            expected[u, v] = ((one[:, u] - one[:, u].mean()) * (other[:, v] - other[:, v].mean())).mean() / spread
    assert np.allclose(sums.likeness().numpy(), expected, atol=1e-7)


@settings(deadline=None, max_examples=10)
@given(seed=seeds)
def test_likeness_of_blocks_is_that_of_what_they_span(seed: int) -> None:
    draw = np.random.default_rng(seed)
    one, other = draw.normal(size=(2, 20, 3, 4)) + 5
    turn, _ = np.linalg.qr(draw.normal(size=(4, 4)))
    other[:, 2] = 3.0 * (one[:, 1] @ turn) - 1.0
    sums = Moments.none(3, 4, torch.device("cpu"))
    sums.add(torch.from_numpy(one), torch.from_numpy(other))
    found = sums.likeness().numpy()
    for u, v in itertools.product(range(3), range(3)):
        x, y = one[:, u] - one[:, u].mean(0), other[:, v] - other[:, v].mean(0)
        norm = np.linalg.norm
        assert found[u, v] == pytest.approx(norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y)), abs=1e-9)
    assert found[1, 2] == pytest.approx(1.0, abs=1e-9)
    assert found.max() <= 1 + 1e-9


def test_likeness_is_taken_where_units_are_read_behind_whatever_stands_between() -> None:
    """A flattening behind convolutions: each place of a channel is a row of its own."""
    modules, (inputs, _) = [conv_net(1), conv_net(2)], points(1, 9, (1, 4, 4), 3)
    symmetry = symmetry_of(modules[0], inputs)
    network = Network(copy.deepcopy(modules[0]), inputs[:1])
    reads = [module.state_dict().__getitem__ for module in modules]
    ((table,),) = likenesses(network, reads, symmetry.groups, torch.split(inputs, 4))
    with torch.no_grad():
        one, other = (module[:3](inputs).double().transpose(0, 1).flatten(1) for module in modules)  # (3, 144)
    found = np.corrcoef(one.numpy(), other.numpy())[:3, 3:]
    error = np.diag((1 - np.diag(found) ** 2) / 12)
    assert np.allclose(table.numpy(), found + error, atol=1e-6)


class Reading(nn.Module):
    """Classes of token ids; negative ones are padding and take no part."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.up, self.last = nn.Embedding(9, 5), nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, ids: Tensor) -> Tensor:
        here = (ids >= 0)[..., None]
        scores = self.last(torch.tanh(self.up(self.tokens(ids.clamp(min=0)))))
        return torch.as_tensor((scores * here).sum(1) / here.sum(1))


def test_padding_takes_no_part() -> None:
    modules = [moved(Reading().eval(), seed, 1.0) for seed in (1, 2)]
    ids = torch.randint(0, 9, (6, 4), generator=random(3))
    padded = torch.cat([ids, torch.full((6, 3), -1)], dim=1)
    network = Network(copy.deepcopy(modules[0]), ids[:1])
    groups = symmetry_of(modules[0], ids).groups
    reads = [module.state_dict().__getitem__ for module in modules]
    plain, longer = (list(likenesses(network, reads, groups, [batch])) for batch in (ids, padded))
    assert len(plain) == 2
    for (one,), (other,) in zip(plain, longer, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def value(first: nn.Module, second: nn.Module) -> float:
    """Σ ⟨θ, θ′⟩."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return sum(float((one.detach().double() * other.detach().double()).sum()) for one, other in pairs)


def ordered(module: nn.Sequential, found: Sequence[Sequence[int]]) -> nn.Sequential:
    """An MLP with its hidden units in other orders, layer by layer."""
    changed = copy.deepcopy(module)
    linear = [layer for layer in changed if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, following, order in zip(linear, linear[1:], found, strict=False):
            layer.weight.copy_(layer.weight[list(order)].clone())
            layer.bias.copy_(layer.bias[list(order)].clone())
            following.weight.copy_(following.weight[:, list(order)].clone())
    return changed


def matching(first: nn.Module, second: nn.Module, seed: int = 0) -> list[Tensor]:
    groups = symmetry_of(first, torch.zeros(1, 6)).groups
    names = [name for name, _ in first.named_parameters()]
    reads = [module.state_dict().__getitem__ for module in (first, second)]
    return WeightMatching(*reads, groups, names, seed).orders()


@settings(deadline=None, max_examples=5)
@given(seed=seeds)
def test_the_weights_of_one_hidden_layer_get_the_best_of_all_orders(seed: int) -> None:
    one, other = mlp(seed, (6, 5, 4)), mlp(seed + 1, (6, 5, 4))
    (found,) = matching(one, other)
    best = max(value(one, ordered(other, [order])) for order in itertools.permutations(range(5)))
    assert value(one, ordered(other, [found.tolist()])) == pytest.approx(best, rel=1e-5)


@settings(deadline=None, max_examples=3)
@given(seed=seeds)
def test_no_layer_alone_can_better_what_the_descent_finds(seed: int) -> None:
    one, other = mlp(seed, (6, 5, 4, 4)), mlp(seed + 1, (6, 5, 4, 4))
    first, second = (order.tolist() for order in matching(one, other, seed))
    end = value(one, ordered(other, [first, second]))
    assert end >= value(one, other)
    alone = [value(one, ordered(other, [order, second])) for order in itertools.permutations(range(5))]
    alone += [value(one, ordered(other, [first, order])) for order in itertools.permutations(range(4))]
    assert max(alone) <= end + 1e-5 * abs(end)
