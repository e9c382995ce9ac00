"""The compiled end of a classifier against torch's own operations, and its visits against a plain loop."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cogram_core.evaluation import compiled
from cogram_core.evaluation.batches import Ending
from cogram_core.evaluation.columns import Columns
from cogram_core.evaluation.compiled import CompiledProbe
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import Candidates, Pool
from cogram_core.evaluation.fast import FastEvaluator
from cogram_core.evaluation.visits import Did, Rules, Run, Visited
from cogram_core.networks.layers import Level
from cogram_core.networks.network import Network
from tests.core.factories import random


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=random(seed), dtype=torch.float64)


def plainly(hidden: Tensor, last: nn.Linear | None, targets: Tensor) -> Tensor:
    """Losses of rows of Z by torch's softmax."""
    with torch.no_grad():
        logits = hidden if last is None else last(torch.relu(hidden))
    return nn.functional.cross_entropy(logits, targets, reduction="none")


@dataclass
class Case:
    """A layer whose neurons' numbers are what they give for each example, since the examples are unit vectors."""

    network: Network
    output: Tensor
    directions: Tensor
    chain: list[nn.Module] | None
    data: Dataset

    @property
    def last(self) -> nn.Linear | None:
        return self.chain[1] if self.chain else None  # type: ignore[return-value]

    @property
    def arriving(self) -> Tensor:
        return self.network.tensor("weight").clone()

    def ending(self, examples: slice = slice(None), function: str = "identity") -> Ending:
        count = len(self.output)
        columns = Columns(
            self.network.layers[0],
            self.network,
            torch.eye(count, dtype=torch.float64)[examples],
            self.arriving[:, examples].clone(),
        )
        output, targets = self.output[examples].clone(), self.data.targets[examples]
        return Ending(columns, function, self.directions, output, plainly(output, self.last, targets), self.chain)

    def probe(self, *parts: slice) -> CompiledProbe:
        made = CompiledProbe.of([self.ending(part) for part in parts or (slice(None),)], self.data)
        assert made is not None
        return made


def case(output: Tensor, rows: int, last: nn.Linear | None, targets: Tensor, seed: int = 0) -> Case:
    count = len(output)
    layer = nn.Linear(count, rows, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(normal(seed, rows, count))
    network = Network(layer, torch.zeros(1, count, dtype=torch.float64))
    weights = torch.rand(count, generator=random(seed + 1), dtype=torch.float64) + 0.1
    chain = [] if last is None else [nn.ReLU(), last]
    return Case(network, output, normal(seed + 2, rows, output.shape[1]), chain, Dataset(output, targets, weights))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    seed = draw(st.integers(0, 2**30))
    count, width, classes = (draw(st.integers(1, most)) for most in (200, 300, 37))
    last = nn.Linear(width, classes, bias=draw(st.booleans())).double() if draw(st.booleans()) else None
    output = normal(seed, count, classes if last is None else width)
    return case(output, 5, last, torch.randint(classes, (count,), generator=random(seed + 3)), seed)


@settings(deadline=None, max_examples=60)
@given(given_case=cases(), seed=st.integers(0, 2**30), pooled=st.booleans(), count=st.integers(1, 6))
def test_losses_and_means_are_those_of_full_operations(given_case: Case, seed: int, pooled: bool, count: int) -> None:
    layer, data = given_case.network.layers[0], given_case.data
    rows = torch.randint(5, (count,), generator=random(seed))
    levels = normal(seed, count, len(data))
    levels[:, ::3] = given_case.arriving[rows][:, ::3]  # these examples don't change
    candidates = Candidates(layer, rows, None, levels)
    if pooled:
        candidates = Candidates(layer, rows, None, None, Pool(levels.flip(0)), torch.arange(count).flip(0))
    half = len(data) // 2
    parts = (slice(0, half), slice(half, None)) if half else (slice(None),)
    losses, means = given_case.probe(*parts).losses(candidates)
    weights = data.weights
    assert weights is not None
    for k, row in enumerate(rows.tolist()):
        change = (levels[k] - given_case.arriving[row])[:, None]
        expected = plainly(given_case.output + change * given_case.directions[row], given_case.last, data.targets)
        torch.testing.assert_close(losses[k], expected, rtol=1e-12, atol=1e-12)
        assert means[k] == pytest.approx(float((weights * expected).sum() / weights.sum()), rel=1e-12, abs=1e-12)


def test_threads_do_not_change_a_bit() -> None:
    last = nn.Linear(300, 20).double()
    big = case(normal(0, 600, 300), 5, last, torch.randint(20, (600,), generator=random(1)))
    candidates = Candidates(big.network.layers[0], torch.tensor([0, 3, 4]), None, normal(2, 3, 600))
    kept, found = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append(big.probe().losses(candidates))
    finally:
        torch.set_num_threads(kept)
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def one_loss(logits: list[float], target: int) -> float:
    """The loss of logits that one candidate makes of zeros."""
    zeros = torch.zeros(1, len(logits), dtype=torch.float64)
    made = case(zeros, 1, None, torch.tensor([target]))
    made.network.tensor("weight").zero_()
    made.directions = torch.tensor([logits], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    losses, _ = made.probe().losses(Candidates(made.network.layers[0], torch.tensor([0]), None, one))
    return float(losses[0, 0])


def test_tiny_losses_keep_their_digits() -> None:
    assert one_loss([30.0, 0.0, -1.0], 0) == pytest.approx(math.exp(-30) + math.exp(-31), rel=1e-14)


def test_losses_beyond_the_range_of_the_exponential_are_finite() -> None:
    assert one_loss([0.0, 5000.0, 4000.0], 0) == pytest.approx(5000.0)
    assert one_loss([0.0, 800.0, 800.0], 0) == pytest.approx(800.0 + math.log(2), rel=1e-14)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [
        ([0.0, math.inf], math.inf),
        ([-math.inf, 0.0], math.inf),
        ([math.nan, 0.0], math.nan),
        ([0.0, math.nan], math.nan),
        ([math.inf, 0.0], 0.0),
        ([math.inf, math.inf], math.nan),
    ],
)
def test_infinity_and_nan_are_told(logits: list[float], expected: float) -> None:
    assert one_loss(logits, 0) == pytest.approx(expected, nan_ok=True)


def test_a_single_class_costs_nothing() -> None:
    assert one_loss([3.0], 0) == 0.0


def test_nan_in_a_hidden_value_reaches_the_loss() -> None:
    made = case(normal(1, 4, 20), 1, nn.Linear(20, 3).double(), torch.tensor([0, 1, 2, 0]))
    levels = made.arriving
    levels[0, 2] += 1
    made.directions[0, 19] = math.nan
    losses, means = made.probe().losses(Candidates(made.network.layers[0], torch.tensor([0]), None, levels))
    assert losses.isnan().tolist() == [[False, False, True, False]]
    assert math.isnan(means[0])


@pytest.mark.parametrize(
    "chain",
    [
        None,
        [nn.Tanh(), nn.Linear(6, 3)],
        [nn.ReLU()],
        [nn.ReLU(), nn.Linear(6, 300)],
        [nn.ReLU(), nn.Linear(6, 3), nn.ReLU()],
    ],
)
def test_other_ends_are_left_to_torch(chain: list[nn.Module] | None) -> None:
    made = case(normal(0, 4, 6), 2, None, torch.tensor([0, 1, 2, 0]))
    ending = replace(made.ending(), chain=[])
    assert CompiledProbe.of([ending], made.data) is not None
    assert CompiledProbe.of([replace(ending, chain=chain)], made.data) is None
    assert CompiledProbe.of([replace(ending, function="tanh")], made.data) is None
    assert CompiledProbe.of([ending, None], made.data) is None
    assert CompiledProbe.of([replace(ending, output=ending.output / 0)], made.data) is None


def test_runs_are_short_where_the_losses_themselves_take_the_time() -> None:
    made = case(normal(0, 2000, 10), 2, None, torch.zeros(2000, dtype=torch.int64))
    losses = 4 * 2000  # of a unit: of two candidates and two steps, each on 2,000 examples
    assert 1 < made.probe().most("weight", 4) * losses < 2**21


def test_a_library_of_another_version_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_VERSION", -1)
    assert compiled.library.__wrapped__() is None


def classifier(seed: int, sizes: Sequence[int], bias: bool) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(sizes):
        layers += [nn.Linear(inner, outer, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Plain:
    """Visits by full forward passes, one after the other: what the rules say, and nothing else."""

    def __init__(self, module: nn.Sequential, data: Dataset) -> None:
        self.module, self.data = module, data

    def losses(self) -> Tensor:
        with torch.no_grad():
            return nn.functional.cross_entropy(self.module(self.data.inputs), self.data.targets, reduction="none")

    def mean(self) -> float:
        mean = float(self.losses().mean())
        return mean if math.isfinite(mean) else math.inf

    def with_value(self, place: Sequence[Tensor], value: Tensor) -> float:
        kept = [part.clone() for part in place]
        put(place, value)
        mean = self.mean()
        put(place, torch.cat([part.flatten() for part in kept]))
        return mean

    def visit(self, run: Run, rules: Rules) -> Visited:
        found = Visited([], [], [], [], [])
        loss = run.loss
        for unit in range(run.count):
            where, place = self.place(run, unit)
            values, current = run.values[:, where[0], where[1]], run.current[where]
            did, losses, shares, step, after = Did.SKIPPED, (math.nan,), (math.nan,), math.nan, math.nan
            if not run.same[unit]:
                tried = enumerate(values)
                losses = tuple(loss if c == rules.known else self.with_value(place, value) for c, value in tried)
                did = Did.NOT_FINITE
            if any(math.isfinite(one) for one in losses[: rules.sources]):
                shares, did = softmax(losses, rules), Did.ROLLED_BACK
                target = sum(share * value for share, value in zip(shares, values, strict=True))
                for step in rules.steps:
                    moved = current + step * (target - current)
                    moved = moved.float().double() if run.single else moved
                    after = self.with_value(place, moved)
                    if after < loss * rules.below:
                        did, loss = Did.MERGED, after
                        put(place, moved)
                        break
            found.did.append(did)
            found.losses.append(losses)
            found.shares.append(shares)
            found.steps.append(step)
            found.after.append(after)
        return found

    def place(self, run: Run, unit: int) -> tuple[tuple[int, slice], list[Tensor]]:
        """Where a unit stands in the block, and in the module."""
        linear: nn.Linear = self.module.get_submodule(run.layer.name)  # type: ignore[assignment]
        row, column = (run.first + unit, None) if run.level == "neuron" else divmod(run.first + unit, run.layer.width)
        parts = [linear.weight.data[row]] + ([] if linear.bias is None else [linear.bias.data[row : row + 1]])
        if column is None:
            return (row - run.block, slice(None)), parts
        inner = column < linear.in_features
        return (row - run.block, slice(column, column + 1)), [parts[0][column : column + 1] if inner else parts[1]]


def put(place: Sequence[Tensor], value: Tensor) -> None:
    for part, new in zip(place, value.split([part.numel() for part in place]), strict=True):
        part.copy_(new)


def softmax(losses: Sequence[float], rules: Rules) -> tuple[float, ...]:
    """Shares by torch, on the grid of 2⁻¹⁶ by running sums."""
    handicaps = [*rules.handicaps, *[0.0] * (len(losses) - len(rules.handicaps))]
    fair = torch.tensor([one - own for one, own in zip(losses, handicaps, strict=True)], dtype=torch.float64)
    raw = torch.softmax((-rules.steepness * fair).masked_fill(~fair.isfinite(), -math.inf), dim=0)
    bounds = [0.0, *(raw.cumsum(0)[:-1] * 2**16).round().tolist(), 2.0**16]
    return tuple((high - low) / 2**16 for low, high in itertools.pairwise(bounds))


@settings(deadline=None, max_examples=60)
@given(draw=st.data())
def test_visits_decide_as_a_plain_loop_does(draw: st.DataObject) -> None:
    seed = draw.draw(st.integers(0, 2**20))
    level: Level = draw.draw(st.sampled_from(["neuron", "weight"]))
    deep, bias = draw.draw(st.booleans()), draw.draw(st.booleans())
    sizes = (5, 9, 8, 3) if deep else (5, 9, 3)
    module = classifier(seed, sizes, bias).double()
    for parameter in module.parameters():
        parameter.data = parameter.data.float().double()
    count = draw.draw(st.sampled_from([7, 64, 70]))
    data = Dataset(normal(seed, count, 5), torch.randint(3, (count,), generator=random(seed + 1)))
    network = Network(module, data.inputs[:1])
    layer = network.layers[draw.draw(st.sampled_from(range(len(network.layers))))]
    extras, sources = draw.draw(st.integers(0, 1)), draw.draw(st.integers(1, 4))
    rows = layer.neurons
    current = network.rows(layer, 0, rows)
    noise = draw.draw(st.sampled_from([1e-3, 1.0]))
    values = torch.stack([(current + noise * normal(seed + 5 + c, *current.shape)) for c in range(sources)])
    if draw.draw(st.booleans()):
        values[torch.rand(values.shape, generator=random(seed)) < 0.1] = math.nan
    single = draw.draw(st.booleans())
    values = values.float().double() if single else values
    known = sources if extras else None
    tried = values.flatten(0, 1)
    values = torch.cat([values, current[None]]) if extras else values
    units = rows * (layer.width if level == "weight" else 1)
    first = draw.draw(st.integers(0, units - 1))
    last = draw.draw(st.integers(first + 1, units))
    same = (torch.rand(last - first, generator=random(seed)) < 0.1).to(torch.uint8)
    plain, fast = Plain(module, data), FastEvaluator(network, data)
    assert fast.most_visits(layer, level, len(values) + 3) is not None
    run = Run(
        layer, level, first, last - first, 0, current, values.contiguous(), Pool(tried), single, same, plain.mean()
    )
    handicaps = tuple((0.01 * normal(seed + 3, sources)).tolist())
    rules = Rules(sources, known, handicaps, draw.draw(st.sampled_from([0.0, 5.0, 300.0])), (1.0, 0.5, 0.25), 1 - 1e-6)
    with pytest.MonkeyPatch.context() as patch:
        if draw.draw(st.booleans()):  # no room for what all candidates would give
            patch.setattr("cogram_core.evaluation.columns.POOLED_BYTES", 0)
        found = fast.visit(run, rules)
    expected = plain.visit(run, rules)
    assert found.did == expected.did
    for unit, did in enumerate(expected.did):
        if did != Did.SKIPPED:
            assert found.losses[unit] == pytest.approx(expected.losses[unit], rel=1e-9)
        if did in (Did.MERGED, Did.ROLLED_BACK):
            assert found.shares[unit] == pytest.approx(expected.shares[unit], abs=2**-15)
            assert sum(found.shares[unit]) == 1.0
            assert found.steps[unit] == expected.steps[unit]
            assert found.after[unit] == pytest.approx(expected.after[unit], rel=1e-9)
    # The module has what was merged, by the plain loop; the evaluator has to know, too.
    others = Candidates(layer, torch.tensor([0]), None, current[:1] + 0.3)
    kept = network.rows(layer, 0, 1)
    (loss,) = fast.losses(others)
    network.assign_row(layer, 0, others.numbers[0])
    assert loss == pytest.approx(plain.mean(), rel=1e-9)
    network.assign_row(layer, 0, kept[0])
