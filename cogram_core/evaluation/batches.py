"""Probes that run the rest of the network on a batch that has a part for every candidate.

Examples that a candidate doesn't change at all keep their losses; where choosing them takes less than they would, they don't
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cogram_core.evaluation.columns import Columns
from cogram_core.evaluation.evaluator import Candidates
from cogram_core.evaluation.losses import LossKind, example_losses
from cogram_core.evaluation.rest import Rest
from cogram_core.networks.calls import ELEMENTWISE, Call
from cogram_core.networks.layers import Layer
from cogram_core.networks.network import Network

# Bytes of the widest tensor of a batch. On a CPU more than the cache holds was measured to be slower; a GPU wants more.
BATCH_BYTES = {"cpu": 2**24, "cuda": 2**27}


@dataclass(frozen=True)
class Ending:
    """A layer whose output reaches Z through a linear map, and all that follows Z.

    ``function`` is what stands between the output and the map; None as ``directions``, else (out, width), says that there is
    no map, and Z is the output itself. Z has shape (N, width), ``losses`` (N,).
    """

    columns: Columns
    function: str
    directions: Tensor | None
    output: Tensor
    losses: Tensor
    chain: Sequence[nn.Module] | None


class _OnRest:
    """Runs the rest for the examples that change."""

    def __init__(self, rest: Rest, base: Tensor) -> None:
        self._rest = rest
        self._base = base  # each example's loss as the network stands, (N,)
        self._examples = self._targets = torch.empty(0)

    def ending(self) -> Ending | None:
        """See ``Probe.ending``."""
        return None

    def _all(self, count: int, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Every example for each of so many candidates, and their targets."""
        size = count * len(targets)
        if len(self._examples) < size:
            self._examples = torch.arange(len(targets), device=targets.device).repeat(count)
            self._targets = targets.repeat(count, *(1,) * (targets.ndim - 1))
        return self._examples[:size], self._targets[:size]

    def _filled(
        self, count: int, which: Tensor, examples: Tensor, output: Tensor, kind: LossKind, targets: Tensor
    ) -> Tensor:
        """The examples' losses under each candidate, (K, N): computed anew where there is a change."""
        losses = self._base.expand(count, -1).clone()
        if len(which):
            found = example_losses(kind, self._rest.run(output, examples), targets.index_select(0, examples))
            losses[which, examples] = found
        return losses


class OwnOutput(_OnRest):
    """Runs the rest on the layer's changed output."""

    def __init__(self, columns: Columns, rest: Rest, channel: int, base: Tensor) -> None:
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

    def ending(self) -> Ending | None:
        """See ``Probe.ending``."""
        output = self._columns.current.movedim(0, self._channel)
        return Ending(self._columns, "identity", None, output, self._base, self._rest.chain)


class RankOne(_OnRest):
    """Runs the rest on the following linear layer's changed output: Z + δ ⊗ V_j.

    All examples run: about two thirds change, and choosing them takes longer than it saves.
    """

    def __init__(
        self, columns: Columns, rest: Rest, function: str, weight: Tensor, output: Tensor, base: Tensor
    ) -> None:
        super().__init__(rest, base)
        self._columns = columns
        self._name, self._function = function, ELEMENTWISE[function]
        self._weight = weight  # Vᵀ, (in, out)
        self._output = output  # Z, (N, ..., out)
        arriving = self._function(columns.current)
        # What Z is made of, (in, N, ...); not the very channels that the columns put others into.
        self._arriving = arriving.clone() if arriving is columns.current else arriving.contiguous()
        # New memory for every batch would have to be cleared by the system first.
        self._space = torch.empty(0, *output.shape, dtype=output.dtype, device=output.device)

    def ending(self) -> Ending | None:
        """See ``Probe.ending``."""
        return Ending(self._columns, self._name, self._weight, self._output, self._base, self._rest.chain)

    def effort(self) -> int:
        """See ``Probe.effort``."""
        return self._output.numel()

    def at_once(self) -> int:
        """See ``Probe.at_once``."""
        return _at_once(self._output)

    def losses(self, candidates: Candidates, kind: LossKind, targets: Tensor) -> Tensor:
        """See ``Probe.losses``."""
        count, rows = len(candidates), candidates.rows.to(self._arriving.device)
        change = self._function(self._columns.of(candidates)) - self._arriving.index_select(0, rows)  # (K, N, ...)
        weight = self._weight.index_select(0, rows).view(count, *(1,) * (change.ndim - 1), -1)
        if len(self._space) < count:
            self._space = torch.empty(count, *self._output.shape, dtype=self._output.dtype, device=weight.device)
        output = torch.addcmul(self._output, change.unsqueeze(-1), weight, out=self._space[:count]).flatten(0, 1)
        examples, repeated = self._all(count, targets)
        return example_losses(kind, self._rest.run(output, examples), repeated).view(count, -1)

    def move(self, candidates: Candidates, place: int, losses: Tensor) -> None:
        """See ``Probe.move``."""
        row = int(candidates.rows[place])
        arriving = self._function(self._columns.move(candidates, place))
        self._output.addcmul_((arriving - self._arriving[row]).unsqueeze(-1), self._weight[row])
        self._arriving[row] = arriving
        self._base = losses


class Channels(_OnRest):
    """Runs the rest on a linear layer's output that is changed by one channel of a convolution: Z + δ·V_j.

    Between the two stands what works on each channel by itself; so only that of the candidate goes through it.
    """

    def __init__(
        self, columns: Columns, front: Rest, rest: Rest, linear: Call, weight: Tensor, output: Tensor, base: Tensor
    ) -> None:
        super().__init__(rest, base)
        self._columns = columns
        self._front = front
        self._linear = linear
        self._arriving = arriving_by_channel(front, linear, columns.current)  # (C, N, P)
        self._weight = weight.t().reshape(len(self._arriving), -1, len(weight)).contiguous()  # (C, P, out)
        self._output = output  # Z, (N, out)

    def effort(self) -> int:
        """See ``Probe.effort``."""
        return self._output.numel() + self._columns.current[0].numel()

    def at_once(self) -> int:
        """See ``Probe.at_once``."""
        return _at_once(max(self._output, self._columns.current[0], key=Tensor.numel))

    def losses(self, candidates: Candidates, kind: LossKind, targets: Tensor) -> Tensor:
        """See ``Probe.losses``."""
        count, rows = len(candidates), candidates.rows.to(self._output.device)
        change = arriving_by_channel(self._front, self._linear, self._columns.of(candidates)) - self._arriving[rows]
        output = torch.baddbmm(self._output.expand(count, -1, -1), change, self._weight[rows]).flatten(0, 1)
        examples, repeated = self._all(count, targets)
        return example_losses(kind, self._rest.run(output, examples), repeated).view(count, -1)

    def move(self, candidates: Candidates, place: int, losses: Tensor) -> None:
        """See ``Probe.move``."""
        row = int(candidates.rows[place])
        (arriving,) = arriving_by_channel(self._front, self._linear, self._columns.move(candidates, place)[None])
        self._output.addmm_(arriving - self._arriving[row], self._weight[row])
        self._arriving[row] = arriving
        self._base = losses


def arriving_by_channel(front: Rest, linear: Call, channels: Tensor) -> Tensor:
    """What arrives at a linear layer of each channel (K, N, ...) by itself, (K, N, P).

    Raises:
        RuntimeError: if it is not of that shape, or one channel can't go alone.
    """
    count, examples = channels.shape[:2]
    alone = channels.flatten(0, 1).unsqueeze(1).clone()  # for what works in place
    every = torch.arange(examples, device=channels.device).repeat(count)
    return front.given_to(linear, alone, every).reshape(count, examples, -1)


class Tokens(_OnRest):
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
    return max(1, BATCH_BYTES[widest.device.type] // max(1, widest.nbytes))


def _changed(change: Tensor) -> tuple[Tensor, Tensor]:
    """Candidate and example of every pair with a change: (B,) each; on a GPU, which would have to wait, of every pair."""
    count, examples = change.shape[:2]
    if change.device.type == "cuda":
        which = torch.arange(count, device=change.device).repeat_interleave(examples)
        return which, torch.arange(examples, device=change.device).repeat(count)
    moved = change != 0  # NaN is a change, too
    pairs = (moved.flatten(2).any(dim=2) if moved.ndim > 2 else moved).nonzero()
    return pairs[:, 0], pairs[:, 1]
