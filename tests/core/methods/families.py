"""Networks of many kinds with data, for comparisons of the engine with the oracle: small, but no two run alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.core.factories import Pair, initialise, random


class Residual(nn.Module):
    """Sums and a concatenation that no module stands for; runs its layers in another order than it names them."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.inner = nn.Linear(9, 3), nn.Linear(5, 5)
        self.norm, self.first = nn.LayerNorm(5), nn.Linear(4, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = functional.relu(self.first(inputs))
        hidden = hidden + 0.5 * functional.gelu(self.inner(self.norm(hidden)))
        return torch.as_tensor(self.head(torch.cat([hidden, inputs], dim=1)))


class Attention(nn.Module):
    """One head, by torch's own function; ``scale`` is a parameter of no row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        query, key, value = self.qkv(inputs).chunk(3, dim=-1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return torch.as_tensor(self.out(mixed) * self.scale)


class Decoder(nn.Module):
    """Scores of the next token, by one block with embeddings of tokens and of places."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(7, 4), nn.Embedding(6, 4)
        self.before, self.attention = nn.LayerNorm(4), Attention(4)
        self.up, self.down, self.head = nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 7, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.tokens(ids) + self.places(torch.arange(ids.shape[1]).expand_as(ids))
        hidden = hidden + self.attention(self.before(hidden))
        return torch.as_tensor(self.head(hidden + self.down(functional.silu(self.up(hidden)))))


class Twice(nn.Module):
    """Calls one of its modules two times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(inputs))
        return torch.as_tensor(self.last(torch.tanh(self.again(torch.tanh(self.again(hidden))))))


class Between(nn.Module):
    """Uses the parameters of one of its modules before it calls it, between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first(inputs)) * self.last.weight.mean(dim=0)
        return torch.as_tensor(self.last(hidden))


class Weighing(nn.Module):
    """Reads the parameters of a module that isn't its own."""

    def __init__(self, other: nn.Linear) -> None:
        super().__init__()
        self._other = [other]

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self._other[0].weight.mean(dim=0)


class Outside(nn.Module):
    """Uses the parameters of one of its modules inside of another that ends before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
        self.weighing = Weighing(self.last)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.last(self.weighing(torch.relu(self.first(inputs)))))


@dataclass(frozen=True)
class Family:
    """Networks of one architecture. ``order`` has the layers as they run."""

    build: Callable[[], nn.Module]
    data: Callable[[int], Pair]
    order: Sequence[str] = ()

    def modules(self, seed: int, count: int = 2) -> list[nn.Module]:
        """Networks not far from each other."""
        start = initialise(self.build(), seed, 0.6)
        return [moved(start, seed + 1 + place) for place in range(count)]


def moved(module: nn.Module, seed: int, by: float = 0.25) -> nn.Module:
    """A copy with noise on every parameter."""
    copied, generator = copy.deepcopy(module), random(seed)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return copied


def _classes(*shape: int, count: int = 16) -> Callable[[int], Pair]:
    def make(seed: int) -> Pair:
        generator = random(seed)
        return torch.randn(count, *shape, generator=generator), torch.randint(0, 3, (count,), generator=generator)

    return make


def _values(seed: int) -> Pair:
    generator = random(seed)
    return torch.randn(16, 4, generator=generator), torch.randn(16, 3, generator=generator)


def _tokens(seed: int) -> Pair:
    """Sentences in which two of seven tokens are never read, with places that are not to be predicted."""
    generator = random(seed)
    ids = torch.randint(0, 5, (12, 6), generator=generator)
    ignored = torch.rand(ids.shape, generator=generator) < 0.2
    ignored[:, 3] = False
    return ids, torch.where(ignored, -100, ids)


def _mlp(activation: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Linear(4, 6), activation(), nn.Linear(6, 5, bias=False), activation(), nn.Linear(5, 3)
    )


def _convolution() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 2, 2, bias=False),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(2, 3),
    )


def _encoder() -> nn.Module:
    return nn.Sequential(
        nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), nn.Linear(4, 2), nn.Flatten(), nn.Linear(6, 3)
    )


ENCODER = ["0.self_attn.out_proj", "0.self_attn", "0.norm1", "0.linear1", "0.linear2", "0.norm2", "1", "3"]
DECODER = ["tokens", "places", "before", "attention.qkv", "attention.out", "attention", "up", "down", "head"]
FAMILIES = {
    "relu": Family(_mlp(nn.ReLU), _classes(4)),
    "gelu": Family(_mlp(nn.GELU), _classes(4)),
    "tanh values": Family(_mlp(nn.Tanh), _values),
    "linear values": Family(_mlp(nn.Identity), _values),
    "convolution": Family(_convolution, _classes(1, 4, 4)),
    "residual": Family(Residual, _classes(4), ["first", "norm", "inner", "head"]),
    "decoder": Family(Decoder, _tokens, DECODER),
    "encoder": Family(_encoder, _classes(3, 4, count=10), ENCODER),
    "twice": Family(Twice, _classes(4), ["first", "again", "last"]),
    "between": Family(Between, _classes(4), ["first", "last"]),
    "outside": Family(Outside, _classes(4), ["first", "last"]),
}
