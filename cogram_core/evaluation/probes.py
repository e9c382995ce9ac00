"""Tries changes of a layer's neurons side by side: each changes one channel of the layer's output, or one token's vector.

    columns   the layer's own output is changed, and the rest of the network runs on it
    rank-one  a linear layer follows, directly or after an elementwise function: its output changes by a matrix of rank
              one, and the rest runs from there
    tokens    an embedding: the vectors of one token change wherever it stands

Examples that a candidate doesn't change at all keep their losses; where choosing them takes less than they would, they don't
run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import Candidates, Pool
from cogram_core.evaluation.fused import FusedEnd
from cogram_core.evaluation.losses import LossKind, example_losses
from cogram_core.evaluation.rest import Rest
from cogram_core.networks.calls import ELEMENTWISE, Call
from cogram_core.networks.layers import Layer
from cogram_core.networks.network import Network
from cogram_core.stopping import stop_point

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LOOK_AHEAD = 3
_ENOUGH_NUMBERS, _DRAWS = 1024, 16
# Bytes of channels that are worked out before they are asked for.
_POOLED_BYTES = 2**25
# Bytes of the widest tensor of a batch. On a CPU more than the cache holds was measured to be slower; a GPU wants more.
_BATCH_BYTES = {"cpu": 2**24, "cuda": 2**27}


@dataclass(frozen=True)
class ProbeKind:
    """How a layer's neurons are tried; ``linear`` says which linear layer follows, where one is made use of."""

    name: Literal["columns", "rank-one", "tokens"]
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

    def with_means(self, candidates: Candidates) -> tuple[Tensor, list[float]] | None:
        """The same and their means over the examples, where compiled code gives both at once."""
        ...

    def move(self, candidates: Candidates, place: int, losses: Tensor) -> None:
        """The candidate at ``place`` is about to be in the network, and these are its examples' losses, (N,)."""
        ...


def probe_kinds(layer: Layer, network: Network, cut: Call) -> Iterator[ProbeKind]:
    """The kinds to be tried for a layer, the quickest first; none if its neurons can only be tried one by one."""
    module = network.module.get_submodule(layer.name)
    if cut.module != layer.name or layer.neurons == 0:
        return
    if not any(_is_plain(module, kind) for kind in (nn.Embedding, nn.Linear, *_CONVOLUTIONS)):
        return
    if isinstance(module, nn.Embedding):
        yield ProbeKind("tokens", cut)
    elif isinstance(module, nn.Linear):
        following = [
            call
            for call in network.calls.calls
            if call.begin > cut.end and isinstance(network.module.get_submodule(call.module), nn.Linear)
        ]
        yield from (ProbeKind("rank-one", cut, call) for call in following[:_LOOK_AHEAD])
        yield ProbeKind("columns", cut)
    elif isinstance(module, _CONVOLUTIONS) and module.groups == 1:
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
        return _Tokens(layer, network, rest, inputs, own, base)
    columns = _Columns(layer, network, inputs, own.movedim(_channel(network, layer), 0).clone())
    if kind.linear is None:
        rest.learn_use(own)
        rest.find_chain(own.clone())
        return _OwnOutput(columns, rest, _channel(network, layer), base)
    ((arriving, leaving),) = following
    function = _function_between(rest, kind.linear, own)
    if function is None or not torch.equal(ELEMENTWISE[function](own), arriving):
        raise RuntimeError(f"{kind.linear.module} doesn't follow {layer.name} elementwise")
    weight = network.tensor(f"{kind.linear.module}.weight")
    rest.go_to(kind.linear)
    rest.learn_use(leaving)
    rest.find_chain(leaving.clone())
    directions = weight.t().contiguous()
    end = FusedEnd.of(rest.chain, directions, leaving, examples)
    return _RankOne(columns, rest, function, directions, leaving, base, end)


def _function_between(rest: Rest, linear: Call, own: Tensor) -> str | None:
    """What is done with the layer's output until it arrives at a linear layer, told on numbers of all sizes and both signs.

    The values at hand would not do: where all are positive, a ReLU looks like nothing at all.
    """
    random = torch.Generator().manual_seed(0)
    left = list(ELEMENTWISE)
    for _ in range(1 if own.numel() >= _ENOUGH_NUMBERS else _DRAWS):
        stop_point()
        sizes = torch.rand(own.shape, generator=random, dtype=torch.float64) * 8 - 3
        signs = torch.randint(0, 2, own.shape, generator=random) * 2 - 1
        wide = (signs * 10**sizes).to(own.device, own.dtype)
        arriving = rest.capture([linear.key], wide.clone())[1][linear.key][0]
        if not isinstance(arriving, Tensor) or arriving.shape != wide.shape:
            return None
        left = [name for name in left if torch.equal(ELEMENTWISE[name](wide), arriving)]
    return left[0] if left else None


def _channel(network: Network, layer: Layer) -> int:
    return 1 if isinstance(network.module.get_submodule(layer.name), _CONVOLUTIONS) else -1


class _Columns:
    """The layer's output channel by channel, as it is and as candidates would have it."""

    def __init__(self, layer: Layer, network: Network, inputs: Tensor, current: Tensor) -> None:
        self._layer = layer
        self._network = network
        self._module = network.module.get_submodule(layer.name)
        self._inputs = inputs  # (N, ..., in), or (N, in, ...) of a convolution
        self._by_feature = inputs.movedim(-1, 0).contiguous() if isinstance(self._module, nn.Linear) else None
        self._pooled: tuple[Pool, Tensor] | None = None
        self._asked: tuple[Candidates, Tensor] | None = None
        self.current = current  # (out, N, ...)

    def of(self, candidates: Candidates) -> Tensor:
        """The channel that each candidate changes, as it would be: (K, N, ...)."""
        channels = self._work_out(candidates)
        self._asked = candidates, channels
        return channels

    def move(self, candidates: Candidates, place: int) -> Tensor:
        """Takes over the channel of a candidate that is about to be in the network, and gives it, (N, ...)."""
        if self._asked is not None and self._asked[0] is candidates:
            channel = self._asked[1][place]
        else:
            channel = self._work_out(candidates.part(place, place + 1))[0]
        self.current[candidates.rows[place]] = channel
        self._asked = None
        return channel

    def _work_out(self, candidates: Candidates) -> Tensor:
        if candidates.columns is not None and self._by_feature is not None:
            return self._of_weights(candidates, candidates.columns, self._by_feature)
        if candidates.pool is None or candidates.picks is None or not self.fits(candidates.pool):
            return self._of_rows(candidates.whole_rows(self._network))
        if self._pooled is None or self._pooled[0] is not candidates.pool:
            self._pooled = candidates.pool, self.of_pool(candidates.pool)
        return self._pooled[1].index_select(0, candidates.picks.to(self.current.device))

    def fits(self, pool: Pool) -> bool:
        """Whether there is room for all channels of a pool."""
        return len(pool.values) * self.current[:1].nbytes <= _POOLED_BYTES

    def of_pool(self, pool: Pool) -> Tensor:
        """The channels of all neurons of a pool, (M, N, ...)."""
        return self._of_rows(pool.values.to(self._network.dtype))

    def _of_rows(self, rows: Tensor) -> Tensor:
        """The channels that neurons (K, width) would have."""
        first, *others = self._layer.shapes
        into = math.prod(first[1:])
        weight, bias = rows[:, :into], rows[:, into] if others else None
        if self._by_feature is not None and self._by_feature.ndim == 2:
            product = weight @ self._by_feature  # in the order in which it is wanted
            return product if bias is None else product.add_(bias.unsqueeze(1))
        if isinstance(self._module, nn.Linear):
            return nn.functional.linear(self._inputs, weight, bias).movedim(-1, 0)
        weight = weight.reshape(-1, *first[1:])
        convolved: Tensor = self._module._conv_forward(self._inputs, weight, bias)  # type: ignore[operator]
        return convolved.movedim(1, 0)

    def _of_weights(self, candidates: Candidates, columns: Tensor, features: Tensor) -> Tensor:
        """One weight times its feature is all that changes; behind the features stands the bias, times one."""
        device, shape = features.device, (-1,) + (1,) * (features.ndim - 1)
        rows, columns = candidates.rows.to(device), columns.to(device)
        weight, *biases = (self._network.tensor(name) for name in self._layer.tensors)
        last = weight.shape[1] - 1
        present, moved = weight[rows, columns.clamp(max=last)], features.index_select(0, columns.clamp(max=last))
        if biases:
            inner = columns <= last
            present = torch.where(inner, present, biases[0][rows])
            moved = torch.where(inner.reshape(shape), moved, 1.0)
        change = (candidates.numbers.to(device, weight.dtype) - present).reshape(shape)
        return torch.addcmul(self.current.index_select(0, rows), change, moved)


class _OnRest:
    """Runs the rest for the examples that change."""

    def __init__(self, rest: Rest, base: Tensor) -> None:
        self._rest = rest
        self._base = base  # each example's loss as the network stands, (N,)

    def with_means(self, _: Candidates) -> tuple[Tensor, list[float]] | None:
        """See ``Probe.with_means``."""
        return None

    def _filled(
        self, count: int, which: Tensor, examples: Tensor, output: Tensor, kind: LossKind, targets: Tensor
    ) -> Tensor:
        """The examples' losses under each candidate, (K, N): computed anew where there is a change."""
        losses = self._base.expand(count, -1).clone()
        if len(which):
            found = example_losses(kind, self._rest.run(output, examples), targets.index_select(0, examples))
            losses[which, examples] = found
        return losses


class _OwnOutput(_OnRest):
    """Runs the rest on the layer's changed output."""

    def __init__(self, columns: _Columns, rest: Rest, channel: int, base: Tensor) -> None:
        super().__init__(rest, base)
        self._columns = columns
        self._channel = channel

    def effort(self) -> int:
        """See ``Probe.effort``."""
        return self._columns.current.numel()

    def at_once(self) -> int:
        """See ``Probe.at_once``."""
        return _at_once(self._columns.current)

    def losses(self, candidates: Candidates, kind: LossKind, targets: Tensor) -> Tensor:
        """See ``Probe.losses``."""
        channels = self._columns.of(candidates)  # (K, N, ...)
        present = self._columns.current[candidates.rows.to(channels.device)]
        which, examples = _changed(channels - present)
        output = self._columns.current.index_select(1, examples).movedim(0, self._channel)
        rows = candidates.rows.to(examples.device)[which]
        output.movedim(self._channel, 1)[torch.arange(len(rows), device=rows.device), rows] = channels[which, examples]
        return self._filled(len(candidates), which, examples, output, kind, targets)

    def move(self, candidates: Candidates, place: int, losses: Tensor) -> None:
        """See ``Probe.move``."""
        self._columns.move(candidates, place)
        self._base = losses


class _RankOne(_OnRest):
    """Runs the rest on the following linear layer's changed output: Z + δ ⊗ V_j.

    Without compiled code all examples run: about two thirds change, and choosing them takes longer than it saves.
    """

    def __init__(
        self,
        columns: _Columns,
        rest: Rest,
        function: str,
        weight: Tensor,
        output: Tensor,
        base: Tensor,
        end: FusedEnd | None,
    ) -> None:
        super().__init__(rest, base)
        self._end = end
        self._columns = columns
        self._function = ELEMENTWISE[function]
        self._weight = weight  # Vᵀ, (in, out)
        self._output = output  # Z, (N, ..., out)
        self._arriving = self._function(columns.current).contiguous()  # what Z is made of, (in, N, ...)
        self._pooled: tuple[Pool, Tensor] | None = None
        self._examples = self._targets = torch.empty(0)
        # New memory for every batch would have to be cleared by the system first.
        self._space = torch.empty(0, *output.shape, dtype=output.dtype, device=output.device)

    def effort(self) -> int:
        """See ``Probe.effort``."""
        return self._output.numel()

    def at_once(self) -> int:
        """See ``Probe.at_once``."""
        return _at_once(self._output)

    def losses(self, candidates: Candidates, kind: LossKind, targets: Tensor) -> Tensor:
        """See ``Probe.losses``."""
        if (found := self.with_means(candidates)) is not None:
            return found[0]
        count, rows = len(candidates), candidates.rows.to(self._arriving.device)
        change = self._function(self._columns.of(candidates)).sub_(self._arriving.index_select(0, rows))  # (K, N, ...)
        weight = self._weight.index_select(0, rows).view(count, *(1,) * (change.ndim - 1), -1)
        if len(self._space) < count:
            self._space = torch.empty(count, *self._output.shape, dtype=self._output.dtype, device=weight.device)
        output = torch.addcmul(self._output, change.unsqueeze(-1), weight, out=self._space[:count]).flatten(0, 1)
        examples, repeated = self._all(count, targets)
        return example_losses(kind, self._rest.run(output, examples), repeated).view(count, -1)

    def with_means(self, candidates: Candidates) -> tuple[Tensor, list[float]] | None:
        """See ``Probe.with_means``."""
        if self._end is None:
            return None
        pool, picks = candidates.pool, candidates.picks
        if pool is None or picks is None or not self._columns.fits(pool):
            levels, picks = self._function(self._columns.of(candidates)), None
        else:
            if self._pooled is None or self._pooled[0] is not pool:
                self._pooled = pool, self._function(self._columns.of_pool(pool))
            levels = self._pooled[1]
        return self._end.losses(self._output, levels, picks, self._arriving, candidates.rows, self._base)

    def _all(self, count: int, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Every example for each of so many candidates, and their targets."""
        size = count * len(targets)
        if len(self._examples) < size:
            self._examples = torch.arange(len(targets), device=targets.device).repeat(count)
            self._targets = targets.repeat(count, *(1,) * (targets.ndim - 1))
        return self._examples[:size], self._targets[:size]

    def move(self, candidates: Candidates, place: int, losses: Tensor) -> None:
        """See ``Probe.move``."""
        row = int(candidates.rows[place])
        arriving = self._function(self._columns.move(candidates, place))
        self._output.addcmul_((arriving - self._arriving[row]).unsqueeze(-1), self._weight[row])
        self._arriving[row] = arriving
        self._base = losses


class _Tokens(_OnRest):
    """Runs the rest on an embedding's output with one token's vector changed."""

    def __init__(
        self, layer: Layer, network: Network, rest: Rest, tokens: Tensor, output: Tensor, base: Tensor
    ) -> None:
        super().__init__(rest, base)
        self._layer = layer
        self._network = network
        self._tokens = tokens  # (N, ...)
        self._output = output  # (N, ..., width)

    def effort(self) -> int:
        """See ``Probe.effort``."""
        return self._output.numel()

    def at_once(self) -> int:
        """See ``Probe.at_once``."""
        return _at_once(self._output)

    def losses(self, candidates: Candidates, kind: LossKind, targets: Tensor) -> Tensor:
        """See ``Probe.losses``."""
        values = candidates.whole_rows(self._network)  # (K, width)
        rows = candidates.rows.to(values.device)
        present = (self._tokens[None] == rows.reshape(-1, *(1,) * self._tokens.ndim)).double()  # (K, N, ...)
        which, examples = _changed(present)
        here = present[which, examples].unsqueeze(-1) > 0
        value = values[which].reshape(len(which), *(1,) * (self._tokens.ndim - 1), values.shape[1])
        output = torch.where(here, value, self._output[examples])
        return self._filled(len(candidates), which, examples, output, kind, targets)

    def move(self, candidates: Candidates, place: int, losses: Tensor) -> None:
        """See ``Probe.move``."""
        value = candidates.part(place, place + 1).whole_rows(self._network)[0]
        self._output = torch.where((self._tokens == candidates.rows[place]).unsqueeze(-1), value, self._output)
        self._base = losses


def _at_once(widest: Tensor) -> int:
    """Candidates a batch, by the bytes of what each needs one of."""
    return max(1, _BATCH_BYTES[widest.device.type] // max(1, widest.nbytes))


def _changed(change: Tensor) -> tuple[Tensor, Tensor]:
    """Candidate and example of every pair with a change: (B,) each; on a GPU, which would have to wait, of every pair."""
    count, examples = change.shape[:2]
    if change.device.type == "cuda":
        which = torch.arange(count, device=change.device).repeat_interleave(examples)
        return which, torch.arange(examples, device=change.device).repeat(count)
    moved = change != 0  # NaN is a change, too
    pairs = (moved.flatten(2).any(dim=2) if moved.ndim > 2 else moved).nonzero()
    return pairs[:, 0], pairs[:, 1]
