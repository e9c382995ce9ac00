from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cogram_core.determinism import repeatable
from cogram_core.evaluation.rest import Rest
from cogram_core.networks.network import Network
from tests.core.factories import initialise, random
from tests.core.methods.families import FAMILIES


class Pair(nn.Module):
    """Gives a tuple, a mapping in it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.relu(self.linear(inputs)), {"twice": 2 * inputs}


class Tuples(nn.Module):
    """Takes apart what a module gives, changes a part of it in place, and never looks at another module's output."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.unread = Pair(), nn.Linear(4, 2)
        self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        first, rest = self.pair(inputs)
        self.unread(inputs)
        hidden = self.middle(first)
        rest["twice"].add_(hidden)
        return torch.as_tensor(self.last(torch.tanh(rest["twice"])))


def in_place() -> nn.Module:
    """A module changes, in place, what stands in the record."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5), nn.ELU(inplace=True), nn.Linear(5, 3))


def opened(build: Callable[[], nn.Module]) -> tuple[Network, Tensor, Rest]:
    inputs = torch.randn(7, 4, generator=random(1))
    network = Network(initialise(build(), 2), inputs[:1])
    return network, inputs, Rest(network, inputs)


@pytest.mark.parametrize("build", [Tuples, in_place, FAMILIES["residual"].build, FAMILIES["relu"].build])
def test_from_every_cut_the_output_is_that_of_a_full_pass_again_and_again(build: Callable[[], nn.Module]) -> None:
    with repeatable(1, torch.device("cpu")):
        network, inputs, rest = opened(build)
        whole = network.logits(inputs)
        for layer in (*network.layers, *reversed(network.layers)):
            cut = network.calls.cut(layer.name)
            rest.go_to(cut)
            for _ in range(2):
                assert torch.equal(rest.run(), whole)
            assert torch.equal(rest.capture([cut.key])[0], whole)


@pytest.mark.parametrize("build", [Tuples, in_place, FAMILIES["residual"].build])
def test_a_choice_of_examples_gives_their_outputs(build: Callable[[], nn.Module]) -> None:
    network, inputs, rest = opened(build)
    whole = network.logits(inputs)
    places = torch.tensor([5, 0, 0, 3])
    for name in ["middle", "last"] if build is Tuples else [network.layers[-1].name]:
        cut = network.calls.cut(name)
        rest.go_to(cut)
        own = rest.capture([cut.key])[1][cut.key][1]
        rest.learn_use(own)
        assert torch.allclose(rest.run(own[places], places), whole[places], atol=1e-6)
        assert torch.equal(rest.run(), whole)


class Shaped(nn.Module):
    """Asks for nothing of a module's output but its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        asked = torch.ones(len(self.first(inputs)), 4)
        return torch.as_tensor(self.last(self.middle(inputs) * asked))


def test_what_is_not_read_still_has_the_shape_of_the_chosen_examples() -> None:
    network, inputs, rest = opened(Shaped)
    places = torch.tensor([5, 0, 0, 3, 1, 2, 2, 2, 6])
    cut = network.calls.cut("middle")
    rest.go_to(cut)
    own = rest.capture([cut.key])[1][cut.key][1]
    rest.learn_use(own)
    assert torch.allclose(rest.run(own[places], places), network.logits(inputs)[places], atol=1e-6)


def test_what_has_changed_before_a_cut_is_computed_anew_once_it_is_told() -> None:
    network, inputs, rest = opened(FAMILIES["relu"].build)
    first, _, last = network.layers
    rest.go_to(network.calls.cut(last.name))
    before = rest.run()
    network.assign(first, {name: 2 * tensor for name, tensor in network.value(first).items()})
    assert torch.equal(rest.run(), before)
    rest.forget_after(network.calls.cut(first.name))
    rest.go_to(network.calls.cut(last.name))
    assert torch.equal(rest.run(), network.logits(inputs))
    assert not torch.equal(rest.run(), before)


def test_only_a_plain_row_of_modules_is_a_chain() -> None:
    for build, expected in ((FAMILIES["relu"].build, True), (FAMILIES["residual"].build, False), (Tuples, False)):
        network, inputs, rest = opened(build)
        cut = network.calls.cut(network.layers[0].name)
        rest.go_to(cut)
        own = rest.capture([cut.key])[1][cut.key][1]
        if isinstance(own, Tensor):
            rest.find_chain(own)
            assert torch.allclose(rest.run(own.clone()), network.logits(inputs), atol=1e-6)
        assert (rest.chain is not None) == expected
