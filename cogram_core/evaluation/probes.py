"""Tries changes of a layer's neurons side by side: each changes one channel of the layer's output, or one token's vector.

- columns: the layer's own output is changed, and the rest of the network runs on it;
- rank-one: a linear layer follows, directly or after an elementwise function: its output changes by a matrix of rank one,
  and the rest runs from there;
- channels: the same for a convolution whose channels reach the linear layer each by itself, through a ReLU or a pool: the
  matrix's rank is as low as a channel has places there;
- tokens: an embedding; the vectors of one token change wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from cogram_core.evaluation.batches import Channels, Ending, OwnOutput, RankOne, Tokens, arriving_by_channel
from cogram_core.evaluation.columns import CONVOLUTIONS, Columns
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import Candidates
from cogram_core.evaluation.losses import LossKind, example_losses
from cogram_core.evaluation.rest import Rest
from cogram_core.networks.calls import ELEMENTWISE, Call
from cogram_core.networks.layers import Layer
from cogram_core.networks.network import Network
from cogram_core.stopping import stop_point

_LOOK_AHEAD = 3
_ENOUGH_NUMBERS, _DRAWS = 1024, 16


@dataclass(frozen=True)
class ProbeKind:
    """How a layer's neurons are tried; ``linear`` says which linear layer follows, where one is made use of."""

    name: Literal["columns", "rank-one", "channels", "tokens"]
    cut: Call
    linear: Call | None = None


class Probe(Protocol):
    """One layer's neurons on one batch of examples."""

    def effort(self) -> int:
        """How many numbers the rest runs through for one candidate."""
        ...

    def at_once(self) -> int:
        """How many candidates to try in one batch."""
        ...

    def losses(self, candidates: Candidates, kind: LossKind, targets: Tensor) -> Tensor:
        """Each example's loss under each candidate, float64 (K, N)."""
        ...

    def move(self, candidates: Candidates, place: int, losses: Tensor) -> None:
        """The candidate at ``place`` is about to be in the network, and these are its examples' losses, (N,)."""
        ...

    def ending(self) -> Ending | None:
        """What compiled code needs in order to take over; None where it can't."""
        ...


def probe_kinds(layer: Layer, network: Network, cut: Call) -> Iterator[ProbeKind]:
    """The kinds to be tried for a layer, the quickest first; none if its neurons can only be tried one by one."""
    if layer.module is None or cut.module != layer.module or layer.neurons == 0:
        return
    module = network.module.get_submodule(layer.module)
    if not any(_is_plain(module, kind) for kind in (nn.Embedding, nn.Linear, *CONVOLUTIONS)):
        return
    if isinstance(module, nn.Embedding):
        yield ProbeKind("tokens", cut)
        return
    if isinstance(module, CONVOLUTIONS) and module.groups > 1:
        return
    following = [
        call
        for call in network.calls.calls
        if call.begin > cut.end and isinstance(network.module.get_submodule(call.module), nn.Linear)
    ]
    for call in following[:_LOOK_AHEAD]:
        yield ProbeKind("rank-one" if isinstance(module, nn.Linear) else "channels", cut, call)
    yield ProbeKind("columns", cut)


def _is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes what torch's own of this kind does."""
    return isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in vars(module)


def open_probe(kind: ProbeKind, layer: Layer, network: Network, rest: Rest, examples: Dataset) -> Probe:
    """A probe of the network as it stands; ``rest`` is cut before the layer.

    Raises:
        RuntimeError: if this kind doesn't fit the layer.
    """
    calls = [kind.cut] if kind.linear is None else [kind.cut, kind.linear]
    output, seen = rest.capture([call.key for call in calls])
    (inputs, own), *following = [seen[call.key] for call in calls]
    base = example_losses(examples.loss, output, examples.targets)
    if kind.name == "tokens":
        rest.learn_use(own)
        return Tokens(layer, network, rest, inputs, own, base)
    by_channel = own.movedim(_channel(network, layer), 0).clone(memory_format=torch.contiguous_format)
    columns = Columns(layer, network, inputs, by_channel)
    if kind.linear is None:
        rest.learn_use(own)
        rest.find_chain(own.clone())
        return OwnOutput(columns, rest, _channel(network, layer), base)
    ((arriving, leaving),) = following
    weight: Tensor = network.module.get_submodule(kind.linear.module).weight.detach()  # type: ignore[operator]
    if kind.name == "channels":
        front = rest.fork()
        front.learn_use(own)
        if not _channel_by_channel(rest, front, kind.linear, own, arriving):
            raise RuntimeError(f"{kind.linear.module} doesn't follow {layer.name} channel by channel")
        rest.go_to(kind.linear)
        rest.learn_use(leaving)
        rest.find_chain(leaving.clone())
        return Channels(columns, front, rest, kind.linear, weight, leaving, base)
    function = _function_between(rest, kind.linear, own)
    if function is None or not torch.equal(ELEMENTWISE[function](own), arriving):
        raise RuntimeError(f"{kind.linear.module} doesn't follow {layer.name} elementwise")
    rest.go_to(kind.linear)
    rest.learn_use(leaving)
    rest.find_chain(leaving.clone())
    return RankOne(columns, rest, function, weight.t().contiguous(), leaving, base)


def _function_between(rest: Rest, linear: Call, own: Tensor) -> str | None:
    """What is done with the layer's output until it arrives at a linear layer."""
    left = list(ELEMENTWISE)
    for wide, arriving in _wide_draws(rest, linear, own):
        if arriving.shape != wide.shape:
            return None
        left = [name for name in left if torch.equal(ELEMENTWISE[name](wide), arriving)]
    return left[0] if left else None


def _channel_by_channel(rest: Rest, front: Rest, linear: Call, own: Tensor, arriving: Tensor) -> bool:
    """Whether a convolution's channels, (N, C, ...), arrive at a linear layer as (N, C·P), as each by itself would."""

    def alone(output: Tensor) -> Tensor:
        return arriving_by_channel(front, linear, output.transpose(0, 1)).transpose(0, 1).flatten(1)

    return torch.equal(alone(own), arriving) and all(
        torch.equal(alone(wide), found) for wide, found in _wide_draws(rest, linear, own)
    )


def _wide_draws(rest: Rest, linear: Call, own: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers of all sizes and both signs in place of a layer's output, and what then arrives at a linear layer.

    The values at hand would not do: where all are positive, a ReLU looks like nothing at all.
    """
    random = torch.Generator().manual_seed(0)
    for _ in range(1 if own.numel() >= _ENOUGH_NUMBERS else _DRAWS):
        stop_point()
        sizes = torch.rand(own.shape, generator=random, dtype=torch.float64) * 8 - 3
        signs = torch.randint(0, 2, own.shape, generator=random) * 2 - 1
        wide = (signs * 10**sizes).to(own.device, own.dtype)
        arriving = rest.capture([linear.key], wide.clone())[1][linear.key][0]
        yield wide, arriving if isinstance(arriving, Tensor) else torch.empty(0)


def _channel(network: Network, layer: Layer) -> int:
    return 1 if isinstance(network.module_of(layer), CONVOLUTIONS) else -1
