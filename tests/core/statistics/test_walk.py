from __future__ import annotations

import copy
import threading
import weakref
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from cogram_core.networks.network import Network
from cogram_core.statistics import streams
from cogram_core.statistics.sites import Kind, find_plan
from cogram_core.statistics.walk import Options, Solved, Task, solve
from tests.core.factories import initialise, random
from tests.core.methods.families import FAMILIES, moved

KINDS: tuple[Kind, ...] = ("linear", "features", "normalised", "embedding")
CHAIN = Options("merged", "original", 1.0, 1e-4)
each_way = pytest.mark.parametrize(
    "options", [Options("own", "propagated", 0.9, 1e-4), Options("merged", "propagated", 0.9, 1e-4), CHAIN]
)


class Block(nn.Module):
    """Maps that share an input, a norm, and a residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.gate, self.up = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        given = self.norm(hidden)
        return torch.as_tensor(hidden + self.down(torch.sigmoid(self.gate(given)) * self.up(given)))


def tower(seed: int, blocks: int, width: int = 8) -> nn.Module:
    return initialise(nn.Sequential(*(Block(width) for _ in range(blocks)), nn.Linear(width, 3)), seed, 0.1)


class Counting:
    """A task that counts how often its tensors are read."""

    def __init__(self, module: nn.Module, inputs: Tensor) -> None:
        self.counts: Counter[str] = Counter()
        self._state = module.state_dict()
        self.task = Task(self._read, inputs, 1.0)

    def _read(self, name: str) -> Tensor:
        self.counts[name] += 1
        return self._state[name].clone()


def walked(modules: Sequence[nn.Module], inputs: Sequence[Tensor], options: Options) -> tuple[Network, list[Solved]]:
    """The network that is walked, starting from the first module, with what was found."""
    network = Network(copy.deepcopy(modules[0]), inputs[0][:1])
    tasks = [Counting(module, rows).task for module, rows in zip(modules, inputs, strict=True)]
    plan = find_plan(network, inputs[0][:1], KINDS if options.arriving == "merged" else ["linear"])
    return network, list(solve(network, tasks, plan, options))


@each_way
def test_every_layer_is_computed_once_for_each_batch_and_stream_and_tensors_are_read_a_few_times(
    options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_EXAMPLES", 4)
    start = tower(1, 3)
    inputs = torch.randn(20, 8, generator=random(2))
    network = Network(copy.deepcopy(start), inputs[:1])
    plan = find_plan(network, inputs[:1], ["linear"])
    tasks = [Counting(moved(start, seed), inputs) for seed in (3, 4)]
    calls: Counter[str] = Counter()
    for name, module in network.module.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
    list(solve(network, [each.task for each in tasks], plan, options))
    both = 2 if options.target == "original" else 1
    for name in ("0.norm", "0.gate", "1.up", "2.down"):
        assert calls[name] == 5 * 2 * both, name
    assert all(count <= 3 for each in tasks for count in each.counts.values())


def peak(blocks: int, options: Options) -> int:
    """The most bytes of modules' outputs that are alive at once while a tower is walked."""
    inputs = torch.randn(40, 8, generator=random(2))
    start = tower(1, blocks)
    network = Network(copy.deepcopy(start), inputs[:1])
    plan = find_plan(network, inputs[:1], ["linear", "features"])
    alive: dict[int, int] = {}
    most = 0

    def hear(_: nn.Module, __: object, output: Tensor) -> None:
        nonlocal most
        alive[id(output)] = output.nbytes
        weakref.finalize(output, alive.pop, id(output), None)
        most = max(most, sum(alive.values()))

    for module in network.module.modules():
        module.register_forward_hook(hear)
    list(solve(network, [Counting(moved(start, seed), inputs).task for seed in (3, 4)], plan, options))
    return most


@each_way
def test_twenty_four_blocks_need_no_more_activations_than_six(options: Options) -> None:
    few, many = peak(6, options), peak(24, options)
    assert 0 < many <= 1.2 * few


@each_way
def test_no_thread_is_left_when_the_walk_is_left_in_its_middle(options: Options) -> None:
    before = threading.active_count()
    start = tower(1, 2)
    inputs = torch.randn(10, 8, generator=random(2))
    network = Network(copy.deepcopy(start), inputs[:1])
    plan = find_plan(network, inputs[:1], ["linear"])
    walk = solve(network, [Counting(moved(start, 3), inputs).task], plan, options)
    next(walk)
    assert threading.active_count() > before
    walk.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.module.modules())


class Refusing(nn.Module):
    """Fails on one value, behind its first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        if bool((inputs == 7).any()):
            raise ValueError("seven")
        return torch.as_tensor(self.last(hidden))


def test_what_the_network_raises_is_raised_and_its_tensors_are_put_back() -> None:
    modules = [initialise(Refusing(), seed) for seed in (1, 2)]
    inputs = torch.randn(8, 3, generator=random(2))
    inputs[5] = 7
    network = Network(copy.deepcopy(modules[0]), inputs[:1])
    plan = find_plan(network, inputs[:1], ["linear"])
    tasks = [Counting(module, inputs).task for module in modules]
    before, state = threading.active_count(), network.state()
    with pytest.raises(ValueError, match="seven"):
        list(solve(network, tasks, plan, Options("own", "propagated", 0.9, 1e-4)))
    assert threading.active_count() == before
    assert torch.equal(network.tensor("last.weight"), state["last.weight"])


@pytest.mark.parametrize("options", [CHAIN, Options("merged", "propagated", 1.0, 1e-4)])
def test_one_source_gives_itself_back(options: Options) -> None:
    for family in ("relu", "residual", "decoder", "convolution", "twice"):
        (module,) = FAMILIES[family].modules(3, 1)
        network, solved = walked([module], [FAMILIES[family].data(4)[0]], options)
        assert all(found.shares == (1.0,) for found in solved)
        state = network.state()
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                assert torch.equal(state[name], tensor), (family, name)


class Masked(nn.Module):
    """Every token by itself, and the mean over those that are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.up, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, packed: Tensor) -> Tensor:
        mask = (packed >= 0)[..., None].float()
        hidden = torch.tanh(self.up(self.norm(self.tokens(packed.clamp(min=0)))))
        return torch.as_tensor(self.head((hidden * mask).sum(1) / mask.sum(1)))


@each_way
def test_padding_takes_no_part(options: Options) -> None:
    start = initialise(Masked(), 1, 0.5)
    modules = [moved(start, seed) for seed in (2, 3)]
    for module in modules:
        module.state_dict()["tokens.weight"][0] = 50.0  # what padding is read as
    ids = [torch.randint(1, 9, (12, 4), generator=random(seed)) for seed in (4, 5)]
    padded = [torch.cat([each, torch.full((12, 3), -1)], 1) for each in ids]
    plain, with_padding = (walked(modules, inputs, options)[0].state() for inputs in (ids, padded))
    for name, tensor in plain.items():
        assert torch.allclose(tensor, with_padding[name], rtol=1e-4, atol=1e-5), name


class Routed(nn.Module):
    """Sends each row to one of two experts, called with the rows that are theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 2)
        self.experts, self.head = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = self.gate(inputs).argmax(1)
        hidden = torch.zeros_like(inputs)
        for number, expert in enumerate(self.experts):
            rows = chosen == number
            if bool(rows.any()):
                hidden[rows] = expert(inputs[rows])
        return torch.as_tensor(self.head(torch.relu(hidden)))


@each_way
def test_modules_that_only_some_rows_reach_never_break_the_walk(options: Options) -> None:
    modules = [initialise(Routed(), seed) for seed in (1, 2)]
    inputs = [torch.randn(70, 4, generator=random(seed)) for seed in (3, 4)]
    network, solved = walked(modules, inputs, options)
    assert {"head.weight", "gate.bias"} <= {found.name for found in solved}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in network.state().values())
