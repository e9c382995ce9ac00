"""All batches of a source's data on their way through the network, through its own tensors or through those at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from cogram_core.networks.network import Network
from cogram_core.statistics.passes import Pass, Stops
from cogram_core.statistics.uses import Uses
from cogram_core.stopping import stop_point

# Constants, so that results don't depend on the memory at hand. What is alive at a place is alive of all batches; their
# size only says how much is computed at once.
_EXAMPLES = 64
_PLACES = 2**14
_MOST_BATCHES = 16

Read = Callable[[str], Tensor]


def batches(inputs: Tensor) -> Sequence[Tensor]:
    """Inputs (N, ...) in parts: 64 examples, or for integers as many as have 16384 places; 16 parts at most."""
    places = 1 if inputs.is_floating_point() else max(1, math.prod(inputs.shape[1:]))
    size = max(1, min(_EXAMPLES, _PLACES // places), math.ceil(len(inputs) / _MOST_BATCHES))
    return torch.split(inputs, size)


class Stream:
    """Forward passes of all batches, which stand still together. With ``read`` they go through a source's tensors."""

    def __init__(self, network: Network, uses: Uses, inputs: Tensor, stops: Stops, read: Read | None) -> None:
        self.inputs = batches(inputs)
        self.passes = [Pass(network.module, batch, stops) for batch in self.inputs]
        self.masks = [network.present(batch) for batch in self.inputs]
        self._network = network
        self._uses = uses
        self._read = read
        self._at = -1

    def advance(self, target: int) -> None:
        """Goes on to a stop; of a source's tensors those are read that are used on the way, and the network's put back.

        Raises:
            FusionStopped: if the run is to end.
        """
        if self._at >= target:
            return
        if self._read is None:
            self._go(target)
        else:
            with holding(self._network, self._read, self._uses.between(self._network.names, self._at, target)):
                self._go(target)
        self._at = target

    def _go(self, target: int) -> None:
        for each in self.passes:
            stop_point()
            each.advance(target)

    def close(self) -> None:
        """Ends all passes."""
        for each in self.passes:
            each.close()


@contextmanager
def holding(network: Network, read: Read, names: Iterable[str]) -> Iterator[None]:
    """Inside the block these tensors of the network are what ``read`` gives."""
    kept = {name: network.tensor(name).clone() for name in names}
    try:
        for name in kept:
            network.tensor(name).copy_(read(name))
        yield
    finally:
        for name, value in kept.items():
            network.tensor(name).copy_(value)
