"""Which networks may be cut anywhere, by one proof for all their layers; every secret way a network can have is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cogram_core.determinism import repeatable
from cogram_core.errors import FusionStopped
from cogram_core.evaluation import fast as module_under_test
from cogram_core.evaluation.composition import is_composition
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import PlainEvaluator
from cogram_core.evaluation.fast import FastEvaluator
from cogram_core.networks.network import Network
from cogram_core.observer import SilentObserver
from cogram_core.stopping import stoppable
from tests.core.evaluation.test_shortcuts import FAMILIES as SHORTCUTS
from tests.core.factories import initialise, mlp, points, random
from tests.core.methods.families import FAMILIES

WIDTH = 4


class Stack(nn.Module):
    """Linear layers, and beside the second of them whatever a test puts there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.kept: Any = None

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.third(torch.tanh(self.second(torch.tanh(self.first(inputs))))))


class Leaving(nn.Linear):
    """Leaves what it was given in a place that others read."""

    place: list[Tensor]

    def forward(self, input: Tensor) -> Tensor:
        self.place[:] = [input.mean(dim=0)]
        return super().forward(input)


class Reading(nn.Linear):
    """Adds, by a gate, what was left there."""

    place: list[Tensor]
    gate = 1.0

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.gate * self.place[0]


def handed_on(gate: float) -> nn.Module:
    """The third layer reads what the first one left, in a list that no module owns."""
    module, place = Stack(), []  # type: ignore[var-annotated]
    module.first, module.third = Leaving(WIDTH, WIDTH), Reading(WIDTH, WIDTH)
    module.first.place = module.third.place = place
    module.third.gate = gate
    return module


class Around(Stack):
    """Code between calls reads what code between earlier calls left."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.third(self.inner(inputs) + self.holder.kept))

    def __init__(self) -> None:
        super().__init__()
        self.holder = Holder()

    def inner(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.second(self.holder(inputs)))


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        self.kept = torch.sin(inputs).mean(dim=0)
        return torch.tanh(self.inside(inputs))


class Peeking(nn.Linear):
    """Reads the numbers of another layer, through a view of them."""

    view: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.view.sum()


def peeking() -> nn.Module:
    module = Stack()
    module.first = Peeking(WIDTH, WIDTH)
    module.first.view = module.third.weight.detach().t()
    return module


class Counting(nn.Linear):
    """Gives something else each time."""

    passes = 0

    def forward(self, input: Tensor) -> Tensor:
        self.passes += 1
        return super().forward(input) + self.passes


def counting() -> nn.Module:
    module = Stack()
    module.second = Counting(WIDTH, WIDTH)
    return module


class Learning(nn.Linear):
    """Keeps a running mean that nothing reads."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, input: Tensor) -> Tensor:
        self.mean.lerp_(input.mean(dim=0), 0.1)
        return super().forward(input)


def learning() -> nn.Module:
    module = Stack()
    module.second = Learning()
    return module


class Adapting(nn.Linear):
    """Takes a running mean off what it is given."""

    mean: Tensor | float = 0.0

    def forward(self, input: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * input.mean(dim=0)
        return super().forward(input - self.mean)


def adapting() -> nn.Module:
    module = Stack()
    module.second = Adapting(WIDTH, WIDTH)
    return module


class Skipping(Around):
    """Makes a call that nothing needs, unless what was left is worthless."""

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.third(self.holder(inputs))
        if bool(torch.isfinite(self.holder.kept).all()):
            self.second(inputs)
        return torch.as_tensor(found)


class Swapping(Around):
    """Makes two calls, in an order that depends on what was left."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.holder(inputs)
        order = (self.first, self.second) if bool(torch.isfinite(self.holder.kept).all()) else (self.second, self.first)
        return torch.as_tensor(self.third(order[0](hidden) + order[1](hidden)))


class Parcels(Stack):
    """Hands an object around that can't be compared."""

    def __init__(self) -> None:
        super().__init__()
        self.second = Stamped()

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.third(self.second(self.first(inputs), parcel)))


class Stamped(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)

    def forward(self, input: Tensor, stamp: object) -> Tensor:  # type: ignore[override]
        del stamp
        return super().forward(input)


parcel = object()


class Harmless(Stack):
    """Rectifies in place what is positive on all examples at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.second = Shifted(WIDTH, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.third(torch.relu_(self.second(inputs))))


class Shifted(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 100


class Choosy(Stack):
    """Refuses numbers that aren't finite."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        if not bool(torch.isfinite(hidden).all()):
            raise ValueError("not finite")
        return torch.as_tensor(self.third(self.second(hidden)))


class Lengthening(Stack):
    """Makes one call more for more examples."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        return torch.as_tensor(self.third(self.second(hidden) if len(inputs) > 1 else hidden))


class Twofold(Stack):
    """Adds to what a call gave, in place, between calls."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        hidden += self.second(hidden)
        return torch.as_tensor(self.third(hidden))


class Named(Stack):
    """Gives and takes lists, mappings, numbers and names, by name and by place."""

    def __init__(self) -> None:
        super().__init__()
        self.split, self.join = Splitting(), Joining()

    def forward(self, inputs: Tensor) -> Tensor:
        parts = self.split(self.first(inputs), sizes=(1, WIDTH - 1), mode="halves")
        small, large = parts["parts"].pop(0), parts["parts"].pop(0)
        return torch.as_tensor(self.third(self.second(self.join([large, small], dim=-1, scale=None))))


class Splitting(nn.Module):
    def forward(self, inputs: Tensor, sizes: tuple[int, ...], mode: str) -> dict[str, Any]:
        return {"parts": list(inputs.split(sizes, dim=-1)), "mode": mode}


class Joining(nn.Module):
    def forward(self, parts: list[Tensor], dim: int, scale: float | None) -> Tensor:
        return torch.cat(parts, dim=dim) * (1.0 if scale is None else scale)


COMPOSED: dict[str, Callable[[], nn.Module]] = {"a stack": Stack, "lists and names": Named}
SECRET: dict[str, Callable[[], nn.Module]] = {
    "left for a later call": lambda: handed_on(1.0),
    "left for a later call that doesn't use it yet": lambda: handed_on(0.0),
    "left for code between calls": Around,
    "a layer read before its turn": peeking,
    "something else each time": counting,
    "a buffer that is written to": learning,
    "a mean that is learned": adapting,
    "a call that may be left out": Skipping,
    "calls in another order": Swapping,
    "an object that can't be compared": Parcels,
    "in place, without effect on these examples": Harmless,
    "NaN refused": Choosy,
    "calls that depend on the examples": Lengthening,
    "in place between calls": Twofold,
}


def shown(module: nn.Module, inputs: Tensor) -> bool:
    """Whether it is found to be a composition; whatever is found, the network stays what it is."""
    with repeatable(1, torch.device("cpu")):
        network = Network(module, inputs[:1])
        before, own = network.state(), [inner.__dict__.get("forward") for inner in network.module.modules()]
        found = is_composition(network, inputs[[1, 3]], inputs[:3])
        assert bool(torch.isfinite(network.logits(inputs)).all())
    assert all(torch.equal(network.tensor(name), before[name]) for name in network.parameters)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in network.state().values())
    assert not any(inner._forward_hooks or inner._forward_pre_hooks for inner in network.module.modules())
    assert [inner.__dict__.get("forward") for inner in network.module.modules()] == own
    return found


@pytest.mark.parametrize("name", [*COMPOSED, *SECRET])
def test_a_network_without_secret_ways_is_a_composition_and_no_other(name: str) -> None:
    module = initialise({**COMPOSED, **SECRET}[name](), 3)
    assert shown(module, torch.randn(5, WIDTH, generator=random(1))) == (name in COMPOSED)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_usual_networks_are_compositions_but_for_layers_read_before_their_turn_and_work_in_place(
    family: str,
) -> None:
    expected = family not in ("outside", "convolution")
    assert shown(FAMILIES[family].modules(3)[0], FAMILIES[family].data(4)[0]) == expected


@pytest.mark.parametrize("name", SHORTCUTS)
def test_networks_that_invite_wrong_shortcuts_are_told_apart(name: str) -> None:
    torch.manual_seed(7)
    wrong = {"in-place module", "deeper in-place modules", "in-place function", "state passed by the side"}
    assert shown(SHORTCUTS[name](), torch.rand(5, 6)) == (name not in wrong)


@pytest.mark.parametrize("name", sorted({*COMPOSED, *SECRET} - {"something else each time", "a mean that is learned"}))
def test_losses_of_whole_layers_are_those_of_full_passes_whatever_is_found(name: str) -> None:
    with repeatable(1, torch.device("cpu")):
        inputs, targets = torch.randn(5, WIDTH, generator=random(1)), torch.tensor([0, 1, 2, 3, 0])
        network = Network(initialise({**COMPOSED, **SECRET}[name](), 3), inputs[:1])
        data, disturbing = Dataset(inputs, targets), inputs.flip(0)
        fast, plain = FastEvaluator(network, data), PlainEvaluator(network, data)
        for layer in (*reversed(network.layers), *network.layers):
            values = [{key: size * network.tensor(key) for key in layer.tensors} for size in (0.5, -1.5)]
            expected = plain.layer_losses(layer, values)
            network.logits(disturbing)
            assert fast.layer_losses(layer, values) == expected, layer.name
            network.assign(layer, values[0])
            fast.changed(layer)


def test_a_network_is_tried_once_and_not_layer_by_layer() -> None:
    inputs, targets = torch.randn(5, WIDTH, generator=random(1)), torch.tensor([0, 1, 2, 3, 0])
    computed = {}
    for depth in (3, 9):
        first = Heard(WIDTH, WIDTH)
        network = Network(nn.Sequential(first, *(nn.Linear(WIDTH, WIDTH) for _ in range(depth))), inputs[:1])
        fast, heard = FastEvaluator(network, Dataset(inputs, targets)), len(first.heard)
        for layer in reversed(network.layers[1:]):
            fast.layer_losses(layer, [network.value(layer)])
        computed[depth] = first.heard[heard:]
    # The record, a second pass, the pass of NaN, once by itself; once before the last layer's cut.
    assert computed[3] == computed[9] == [2, 2, 3, 2, 5]


class Heard(nn.Linear):
    """Notes for how many examples it was really computed."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out)
        self.heard: list[int] = []

    def forward(self, input: Tensor) -> Tensor:
        self.heard.append(len(input))
        return super().forward(input)


def test_a_network_too_large_to_record_is_tried_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = points(0)
    network = Network(mlp(0), inputs[:1])
    numbers = sum(call.numbers for call in network.calls.calls)
    asked = []
    monkeypatch.setattr(module_under_test, "is_composition", lambda *_: asked.append(1) or True)
    for size, expected in ((2 * 4 * numbers, 1), (2 * 4 * numbers - 1, 0)):
        asked.clear()
        monkeypatch.setattr(module_under_test, "RECORD_BYTES", size)
        fast, layer = FastEvaluator(network, Dataset(inputs[:4], targets[:4])), network.layers[-1]
        values = [{name: 2 * tensor for name, tensor in network.value(layer).items()}]
        assert fast.layer_losses(layer, values) == PlainEvaluator(
            network, Dataset(inputs[:4], targets[:4])
        ).layer_losses(layer, values)
        assert len(asked) == expected


class Stopping(SilentObserver):
    """Stops at the n-th question."""

    def __init__(self, at: int) -> None:
        self.left = at

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize("at", range(1, 7))
def test_a_stop_in_the_middle_puts_every_number_back(at: int) -> None:
    inputs, _ = points(0)
    network = Network(mlp(0), inputs[:1])
    before = network.state()
    with pytest.raises(FusionStopped), stoppable(Stopping(at)):
        is_composition(network, inputs[:2], inputs[2:3])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state().items())
