"""Networks with hidden units in all kinds of places, and what of them can be permuted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from cogram_core.networks.network import Network
from cogram_core.networks.permutations import Symmetry, find_symmetry
from cogram_core.permuting import permuted
from tests.core.factories import initialise, random


class Scale(nn.Module):
    """x / rms(x) · weight, as the newer language models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Transposed(nn.Module):
    """A linear layer whose weight has a column an output, as GPT-2's."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(into, out)), nn.Parameter(torch.zeros(out))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight + self.bias


def attend(query: Tensor, key: Tensor, value: Tensor, width: int) -> Tensor:
    """Causal attention; all (N, T, heads · width), with as many or fewer heads of keys and values."""
    parts = [entry.unflatten(-1, (-1, width)).transpose(1, 2) for entry in (query, key, value)]
    repeats = parts[0].shape[1] // parts[1].shape[1]
    parts[1:] = [part.repeat_interleave(repeats, dim=1) for part in parts[1:]]
    return functional.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2).flatten(2)


class Grouped(nn.Module):
    """A block with grouped queries and a gated MLP, on places with a table of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 12), nn.Parameter(torch.ones(1, 6, 12))
        self.before, self.between, self.last = Scale(12), Scale(12), Scale(12)
        self.query, self.key, self.value = nn.Linear(12, 12), nn.Linear(12, 6), nn.Linear(12, 6, bias=False)
        self.out, self.head = nn.Linear(12, 12, bias=False), nn.Linear(12, 11, bias=False)
        self.gate, self.up, self.down = (nn.Linear(*sizes, bias=False) for sizes in ((12, 9), (12, 9), (9, 12)))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.tokens(ids) + self.places
        given = self.before(hidden)
        hidden = hidden + self.out(attend(self.query(given), self.key(given), self.value(given), 3))
        given = self.between(hidden)
        hidden = hidden + self.down(functional.silu(self.gate(given)) * self.up(given))
        return torch.as_tensor(self.head(self.last(hidden)))


class Fused(nn.Module):
    """A block with queries, keys and values in one transposed weight, gate and up in another; the head is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight
        self.before, self.between = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mix, self.out = Transposed(8, 24), Transposed(8, 8)
        self.widen, self.down = Transposed(8, 10), Transposed(5, 8)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.tokens(ids)
        hidden = hidden + self.out(attend(*self.mix(self.before(hidden)).chunk(3, -1), 4))
        gate, up = self.widen(self.between(hidden)).chunk(2, -1)
        return torch.as_tensor(self.head(hidden + self.down(functional.gelu(gate) * up)))


class Block(nn.Module):
    """relu(x + f(x)), or with other channels relu(p(x) + f(x))."""

    def __init__(self, into: int, inner: int, out: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(into, inner, 3, padding=1, bias=False), nn.Conv2d(inner, out, 1)
        self.norm = nn.BatchNorm2d(inner)
        self.beside = None if into == out else nn.Conv2d(into, out, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.second(torch.relu(self.norm(self.first(inputs))))
        return torch.relu_(found + (inputs if self.beside is None else self.beside(inputs)))


class Squeezed(nn.Module):
    """Channels weighed by what they are on the whole image, between a depthwise convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.less, self.more, self.last = nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(24, 3)

    def forward(self, images: Tensor) -> Tensor:
        found = torch.tanh(self.deep(functional.silu(self.wide(images))))
        weight = torch.sigmoid(self.more(torch.tanh(self.less(found.mean((2, 3))))))
        found = functional.max_pool2d(found * weight[:, :, None, None], 2)
        return torch.as_tensor(self.last(found.flatten(1)))


class OntoInputs(nn.Module):
    """Adds to its own inputs, which nobody can permute."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.last = nn.Linear(4, 7), nn.Linear(7, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.last(inputs + self.down(torch.relu(self.up(inputs)))))


class Ordered(nn.Module):
    """Does something with its units that depends on their order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.last(torch.cumsum(self.first(inputs), dim=1)))


class Turning(nn.Module):
    """Treats its units alike as long as they stand in a circle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        return torch.as_tensor(self.last(hidden * hidden.roll(1, dims=1)))


class Experts(nn.Module):
    """One of three matrices, as chosen for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4, 5))

    def forward(self, inputs: Tensor, chosen: Tensor) -> Tensor:
        return torch.einsum("ni,nio->no", inputs, self.weight[chosen])


class Routed(nn.Module):
    """A choice among experts: their order could change only with that of whole matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts, self.last = nn.Linear(4, 3), Experts(), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.last(self.experts(inputs, self.router(inputs).argmax(1))))


@dataclass(frozen=True)
class Kind:
    """``groups`` has layer, units and features of each, front to back; ``left`` the layers that are left alone."""

    build: Callable[[], nn.Module]
    shape: Sequence[int]
    groups: Sequence[tuple[str, int, int]]
    left: Mapping[str, str] = field(default_factory=dict)
    tokens: bool = False

    def inputs(self, seed: int, count: int = 8) -> Tensor:
        if self.tokens:
            return torch.randint(0, 11, (count, *self.shape), generator=random(seed))
        return torch.randn(count, *self.shape, generator=random(seed))

    def module(self, seed: int) -> nn.Module:
        return initialise(self.build(), seed)


def _normed(groups: int) -> nn.Module:
    norm = nn.GroupNorm(groups, 6)
    return nn.Sequential(nn.Conv2d(1, 6, 3), norm, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 3))


def _stages() -> nn.Module:
    blocks = [Block(4, 5, 4), Block(4, 3, 4), Block(4, 5, 6)]
    return nn.Sequential(nn.Conv2d(1, 4, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))


OUTPUT = "its units are the network's outputs"
KINDS = {
    "one group of channels": Kind(lambda: _normed(1), (1, 4, 4), [("0", 6, 1)], {"5": OUTPUT}),
    "groups of one channel": Kind(lambda: _normed(6), (1, 4, 4), [("0", 6, 1)], {"5": OUTPUT}),
    "three groups of channels": Kind(lambda: _normed(3), (1, 4, 4), [("0", 3, 2)], {"5": OUTPUT}),
    "residual": Kind(
        _stages,
        (1, 6, 6),
        [("0", 4, 1), ("1.first", 5, 1), ("2.first", 3, 1), ("3.first", 5, 1), ("3.second", 6, 1)],
        {"6": OUTPUT},
    ),
    "squeezed": Kind(Squeezed, (1, 4, 4), [("wide", 6, 1), ("less", 4, 1)], {"last": OUTPUT}),
    "grouped queries": Kind(
        Grouped, (6,), [("tokens", 12, 1), ("query", 2, 6), ("gate", 9, 1)], {"head": OUTPUT}, tokens=True
    ),
    "fused": Kind(Fused, (5,), [("tokens", 8, 1), ("mix", 2, 4), ("widen", 5, 1)], tokens=True),
    "onto inputs": Kind(
        OntoInputs, (4,), [("up", 7, 1)], {"down": "last is given its units mixed with others", "last": OUTPUT}
    ),
    "silent at first": Kind(
        lambda: nn.Sequential(
            nn.Linear(5, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 3)
        ),
        (5,),
        [("0", 2, 1), ("2", 2, 1)],
        {"4": OUTPUT},
    ),
    "routed": Kind(
        Routed,
        (4,),
        [("experts", 5, 1)],
        {"router": "nothing is seen to read its units", "last": OUTPUT},
    ),
    "turning": Kind(
        Turning,
        (4,),
        [],
        {"first": "the network's output depends on the order of its units", "last": OUTPUT},
    ),
    "ordered": Kind(Ordered, (4,), [], {"first": "last is given its units mixed with others", "last": OUTPUT}),
}


def symmetry_of(module: nn.Module, inputs: Tensor) -> Symmetry:
    """What can be permuted in a copy of ``module``."""
    return find_symmetry(Network(copy.deepcopy(module), inputs[:1]), inputs)


def shuffled(module: nn.Module, symmetry: Symmetry, seed: int) -> nn.Module:
    """A copy with the units of all groups in random orders, made from its state dict alone."""
    copied = copy.deepcopy(module)
    state = {name: tensor.clone() for name, tensor in copied.state_dict().items()}
    generator = random(seed)
    for group in symmetry.groups:
        order = torch.randperm(group.units, generator=generator)
        order = order.roll(1) if torch.equal(order, torch.arange(group.units)) else order
        for axis in group.axes:
            state[axis.tensor] = permuted(state[axis.tensor], [(axis, order)])
    with torch.no_grad():
        for name in reversed(list(state)):  # a tied tensor goes by its first name
            copied.state_dict()[name].copy_(state[name])
    return copied
