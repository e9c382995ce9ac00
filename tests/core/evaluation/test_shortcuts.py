"""Networks that invite a wrong shortcut: the fast evaluator notices, or isn't touched by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cogram_core.evaluation import fast as module_under_test
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import Candidates, PlainEvaluator
from cogram_core.evaluation.fast import FastEvaluator
from cogram_core.networks.network import Network


class RectifiedLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


class InPlace(nn.Module):
    """Rectifies in place, in a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.b(torch.relu_(self.a(inputs)))


class Aside(nn.Module):
    """A module that keeps its input for another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.keeper = Keeper()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.keeper(torch.relu(self.a(inputs)))
        return self.c(torch.relu(self.b(hidden)) + self.keeper.kept)


class Keeper(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        self.kept = inputs
        return inputs


class Popping(nn.Module):
    """A decoder that takes what it needs off the encoder's list."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.last = Encoder(), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.encoder(inputs)
        return self.last(found.pop() + found.pop())


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        first = torch.relu(self.a(inputs))
        return [first, torch.relu(self.b(first))]


class Tied(nn.Module):
    """Reads its embedding's weight a second time, as the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(9, 5), nn.Linear(5, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(self.embedding(input=inputs).mean(dim=1)))
        return hidden @ self.embedding.weight.t()


def chain(between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), between, nn.Linear(8, 3))


def wrapped() -> nn.Module:
    """A layer with a forward pass of its own beside its class's."""
    module = chain(nn.ReLU())
    first = module[0]  # type: ignore[index]
    plain = first.forward
    first.forward = lambda inputs: torch.relu(plain(inputs) - 0.1)
    return module


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "in-place module": lambda: chain(nn.ReLU(inplace=True)),
    "deeper in-place modules": lambda: nn.Sequential(
        *(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 7), nn.ReLU(inplace=True), nn.Linear(7, 3))
    ),
    "in-place function": InPlace,
    "clipped above": lambda: chain(nn.ReLU6()),
    "clipped on both sides": lambda: chain(nn.Hardtanh(-3, 3)),
    "all units active": lambda: chain(nn.ReLU()),
    "a layer that rectifies itself": lambda: nn.Sequential(RectifiedLinear(6, 8), nn.Linear(8, 3)),
    "state passed by the side": Aside,
    "a list that is consumed": Popping,
    "a forward pass of its own": wrapped,
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("count", [5, 1025])
def test_losses_stay_those_of_full_passes(name: str, count: int) -> None:
    torch.manual_seed(7)
    network = Network(FAMILIES[name]().double(), torch.rand(1, 6, dtype=torch.float64))
    data = Dataset(torch.rand(count, 6, dtype=torch.float64), torch.randint(3, (count,)))
    plain, fast = PlainEvaluator(network, data), FastEvaluator(network, data)
    for layer in reversed(network.layers):
        before = network.state()
        other = {tensor: network.tensor(tensor) - 0.7 for tensor in layer.tensors}
        assert fast.layer_losses(layer, [other]) == pytest.approx(plain.layer_losses(layer, [other]), rel=1e-12)
        for turn in range(3):
            rows = torch.randint(layer.neurons, (4,))
            candidates = Candidates(layer, rows, None, 3 * torch.randn(4, layer.width, dtype=torch.float64))
            assert fast.losses(candidates) == pytest.approx(plain.losses(candidates), rel=1e-12), (layer.name, turn)
            assert all(torch.equal(network.tensor(key), value) for key, value in before.items())
            fast.moving(candidates, 2)
            network.assign_row(layer, int(rows[2]), candidates.numbers[2])
            before = network.state()
        assert fast.loss() == pytest.approx(plain.loss(), rel=1e-12)


def test_a_record_that_would_be_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    module = nn.Sequential(nn.Linear(6, 50), nn.ReLU(), nn.Linear(50, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    network = Network(module, torch.rand(1, 6, dtype=torch.float64))
    data = Dataset(torch.randn(20, 6, dtype=torch.float64), torch.randint(3, (20,)))
    # Before the middle layer: 50 + 50 numbers an example, before the last 8 + 8 more.
    monkeypatch.setattr(module_under_test, "RECORD_BYTES", 20 * 8 * 101)
    fast, plain = FastEvaluator(network, data), PlainEvaluator(network, data)
    for layer in network.layers:
        candidates = Candidates(layer, torch.tensor([0, 2]), None, torch.randn(2, layer.width, dtype=torch.float64))
        assert fast.losses(candidates) == pytest.approx(plain.losses(candidates), rel=1e-12)
    assert [bool(fast.note(layer)) for layer in network.layers] == [False, False, True]


def test_rows_that_are_read_in_another_way_are_not_taken_for_untouched() -> None:
    torch.manual_seed(3)
    network = Network(Tied().double(), torch.tensor([[0, 1]]))
    data = Dataset(torch.tensor([[0, 1], [2, 1]]), torch.tensor([4, 0]))
    fast = FastEvaluator(network, data)
    (embedding,) = [layer for layer in network.layers if layer.name == "embedding"]
    assert fast.touched(embedding) is None
    candidates = Candidates(embedding, torch.tensor([4, 7]), None, torch.randn(2, 5, dtype=torch.float64))
    assert fast.losses(candidates) == pytest.approx(PlainEvaluator(network, data).losses(candidates), rel=1e-12)
