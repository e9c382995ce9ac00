"""A window: a run of neurons or weights of one layer, with their values in the network and in the sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cogram_core.evaluation.evaluator import Candidates
from cogram_core.methods.cogram.params import Extra
from cogram_core.methods.cogram.visitor import Visitor
from cogram_core.methods.contract import Source
from cogram_core.mixing import mix_streamed, plain_average, step_towards
from cogram_core.networks.layers import Layer, Level
from cogram_core.networks.network import Network

_BLOCK_ROWS = 64


@dataclass(frozen=True)
class Window:
    """Units first to last − 1 of a layer's units of one level, in index order.

    ``current`` has their values (U, width) or (U,), ``candidates`` those of the ``sources`` sources and of extra candidates,
    one tensor each.
    """

    layer: Layer
    level: Level
    first: int
    current: Tensor
    candidates: tuple[Tensor, ...]
    sources: int

    def unchanging(self, touched: frozenset[int] | None) -> dict[int, str]:
        """Units that no candidate can change, with the reason; ``touched`` has the rows that the data read."""
        found = {}
        sources = self.candidates[: self.sources]
        same = torch.stack([(source == self.current).reshape(len(self.current), -1).all(dim=1) for source in sources])
        for unit, equal in enumerate(same.all(dim=0).tolist()):
            if equal:
                found[unit] = "every source has what the network has"
            elif touched is not None and self.place(unit)[0] not in touched:
                found[unit] = "no evaluation example reads this row"
        return found

    def tried(self, extras: Sequence[Extra]) -> list[Tensor]:
        """The candidates whose losses aren't known yet: all but the units as they stand."""
        known = self.sources + list(extras).index("current") if "current" in extras else None
        return [candidate for place, candidate in enumerate(self.candidates) if place != known]

    def trying_each(self, units: Sequence[int], values: Sequence[Tensor]) -> Candidates:
        """All of the values for some of the units: first all units with the first, and so on."""
        return self.trying(list(units) * len(values), torch.cat([value[list(units)] for value in values]))

    def rows(self) -> tuple[int, int]:
        """The first row that has units of the window, and the one behind the last."""
        return self.place(0)[0], self.place(len(self.current) - 1)[0] + 1

    def put(self, network: Network, unit: int, value: Tensor) -> None:
        """Puts a unit's value into the network."""
        row, column = self.place(unit)
        if column is None:
            network.assign_row(self.layer, row, value.to(network.dtype))
        else:
            network.assign_weight(self.layer, row, column, value.to(network.dtype))

    def place(self, unit: int) -> tuple[int, int | None]:
        """Row and column of a unit, counted in the window."""
        at = self.first + unit
        return (at, None) if self.level == "neuron" else divmod(at, self.layer.width)

    def targets(self, units: Sequence[int], shares: Sequence[Sequence[float]]) -> Tensor:
        """Σ aᵢ·Sᵢ[u] of some units, in float64, (A, width) or (A,)."""
        weights = torch.tensor([list(row) for row in shares], dtype=torch.float64, device=self.current.device)
        weights = weights.t() if self.level == "weight" else weights.t().unsqueeze(-1)
        return mix_streamed([candidate[list(units)] for candidate in self.candidates], list(weights))

    def stepped(self, units: Sequence[int], targets: Tensor, steps: float | Tensor) -> Tensor:
        """M[u] + t·(W − M[u]) of some units, rounded once, to the compute dtype; one step for all, or one each."""
        current = self.current[list(units)]
        if isinstance(steps, float):
            return step_towards(current, targets, steps).to(current.dtype)
        each = [
            step_towards(now, target, float(step)) for now, target, step in zip(current, targets, steps, strict=True)
        ]
        return torch.stack(each).to(current.dtype)

    def trying(self, units: Sequence[int], values: Tensor) -> Candidates:
        """Values for some of the units, as what an evaluator takes; units may come more than once."""
        at = torch.tensor(units, dtype=torch.int64) + self.first
        if self.level == "neuron":
            return Candidates(self.layer, at, None, values)
        return Candidates(self.layer, at // self.layer.width, at % self.layer.width, values)


class Reader:
    """Reads units of one layer, from the network and block by block from the sources."""

    def __init__(self, visitor: Visitor, layer: Layer) -> None:
        self._visitor = visitor
        self._layer = layer
        self._first = self._last = 0
        self._block: list[Tensor] = []

    def window(self, level: Level, first: int, last: int) -> Window:
        """The window of these units; at most as far as the block that holds the first reaches."""
        width = 1 if level == "neuron" else self._layer.width
        row = first // width
        if not self._first <= row < self._last:
            self._read(row)
        last = min(last, self._last * width)
        rows = row, (last - 1) // width + 1
        matrix = self._visitor.context.network.rows(self._layer, *rows).to(self._visitor.dtype)
        sources = [block[rows[0] - self._first : rows[1] - self._first] for block in self._block]
        if level == "weight":
            matrix, *sources = (m.flatten()[first - row * width : last - row * width] for m in (matrix, *sources))
        return Window(self._layer, level, first, matrix, (*sources, *self._extras(matrix, sources)), len(sources))

    def _extras(self, current: Tensor, sources: Sequence[Tensor]) -> list[Tensor]:
        made = {"current": lambda: current, "average": lambda: plain_average(sources, len(sources))}
        return [made[extra]() for extra in self._visitor.params.extras]

    def _read(self, row: int) -> None:
        self._first = row - row % _BLOCK_ROWS
        self._last = min(self._first + _BLOCK_ROWS, self._layer.neurons)
        self._block = [self._rows(source) for source in self._visitor.context.sources]

    def _rows(self, source: Source) -> Tensor:
        return self._layer.matrix(lambda name: source.read_rows(name, self._first, self._last))
