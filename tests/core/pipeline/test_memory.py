from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from cogram_core.guard import Jury, hear_inputs
from cogram_core.networks.network import Network
from cogram_core.recipe import Guard
from tests.core.factories import mlp


class CountedReads:
    """Reads a state's tensors, and knows how many of those it has given are still held at the next reading."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self._given: weakref.WeakSet[Tensor] = weakref.WeakSet()

    def of(self, state: dict[str, Tensor]) -> Callable[[str], Tensor]:
        def read(name: str) -> Tensor:
            self.held.append(len(self._given))
            tensor = state[name].clone()
            self._given.add(tensor)
            return tensor

        return read


def test_comparing_the_sources_holds_few_of_their_tensors_at_a_time_however_many_there_are() -> None:
    states = [dict(mlp(seed).state_dict()) for seed in range(5)]
    reads = CountedReads()
    network = Network(mlp(9), torch.zeros(1, 6))
    jury = Jury(Guard(mode="report"), network, None, None, {})
    hear_inputs(jury, network, [(f"source {place}", reads.of(state)) for place, state in enumerate(states)])
    assert len(reads.held) == 2 * 5 * len(states[0])
    assert max(reads.held) <= 3 < len(states[0])
