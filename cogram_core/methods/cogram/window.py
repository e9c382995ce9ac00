"""Neurons and weights with their values in the network and in the sources: blocks of rows that are read together, and
windows, runs of units that are decided on together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cogram_core.evaluation.evaluator import Candidates, Pool
from cogram_core.evaluation.visits import Run
from cogram_core.methods.cogram.params import Extra
from cogram_core.methods.cogram.visitor import Visitor
from cogram_core.methods.contract import Source
from cogram_core.mixing import mix, plain_average, step_towards
from cogram_core.networks.layers import Layer, Level
from cogram_core.networks.network import Network

_BLOCK_ROWS = 64


class Block:
    """Rows first to last − 1 of a layer, (R, width) each: ``current`` has the network's, ``candidates`` (C, R, width) those
    of sources and extra candidates.

    A unit's values are only read before it is decided on, so that they stay right while the network changes.
    """

    def __init__(self, layer: Layer, first: int, current: Tensor, sources: Sequence[Tensor], extras: Sequence[Extra]):
        made = {"current": lambda: current, "average": lambda: plain_average(sources, len(sources))}
        self.layer = layer
        self.first = first
        self.last = first + len(current)
        self.current = current
        self.candidates = torch.stack([*sources, *(made[extra]() for extra in extras)])
        self._known = len(sources) + list(extras).index("current") if "current" in extras else None
        self._sources = len(sources)

    @cached_property
    def tried(self) -> Tensor:
        """The candidates whose losses aren't known yet, (E, R, width): all but the units as they stand."""
        places = [place for place in range(len(self.candidates)) if place != self._known]
        return self.candidates[places] if len(places) < len(self.candidates) else self.candidates

    @cached_property
    def pool(self) -> Pool:
        """The same, as one matrix of rows."""
        return Pool(self.tried.flatten(0, 1))

    @cached_property
    def places(self) -> Tensor:
        """Rows, counted in the layer, and places in the pool of all values to be tried: (2, E, R)."""
        count, rows = self.tried.shape[:2]
        at = torch.arange(count * rows).view(count, rows)
        return torch.stack([at % rows + self.first, at])

    @cached_property
    def doubles(self) -> tuple[Tensor, Tensor]:
        """``current`` and ``candidates`` in float64."""
        return self.current.double().contiguous(), self.candidates.double().contiguous()

    @cached_property
    def same(self) -> Tensor:
        """Which numbers are the same in the network and in every source, (R, width)."""
        return (self.candidates[: self._sources] == self.current).all(dim=0)

    @cached_property
    def same_rows(self) -> list[bool]:
        """Which rows are."""
        found: list[bool] = self.same.all(dim=1).tolist()
        return found


@dataclass(frozen=True)
class Window:
    """``count`` units of a layer from ``first`` on, in index order, all in one block."""

    block: Block
    level: Level
    first: int
    count: int

    @property
    def layer(self) -> Layer:
        """The units' layer."""
        return self.block.layer

    @property
    def offset(self) -> int:
        """The first unit, counted from the block's first."""
        return self.first - self.block.first * (1 if self.level == "neuron" else self.layer.width)

    def unchanging(self, touched: frozenset[int] | None) -> dict[int, str]:
        """Units that no candidate can change, with the reason; ``touched`` has the rows that the data read."""
        start, end = self.offset, self.offset + self.count
        same = (
            self.block.same_rows[start:end] if self.level == "neuron" else self.block.same.view(-1)[start:end].tolist()
        )
        found = {unit: "every source has what the network has" for unit, equal in enumerate(same) if equal}
        if touched is not None:
            for unit in range(self.count):
                if self.place(unit)[0] not in touched:
                    found.setdefault(unit, "no evaluation example reads this row")
        return found

    def run(self, unchanging: Mapping[int, str], loss: float) -> Run:
        """All units but the unchanging ones, for an evaluator that visits them by itself."""
        same = torch.zeros(self.count, dtype=torch.uint8)
        same[list(unchanging)] = 1
        block, (current, values) = self.block, self.block.doubles
        single = block.current.dtype == torch.float32
        where = (self.level, self.first, self.count, block.first)
        return Run(self.layer, *where, current, values, block.pool, single, same, loss)

    def sources_of(self, units: Sequence[int]) -> Candidates:
        """Every candidate that has to be tried for some of the units: first all units with the first, and so on."""
        block, count = self.block, len(self.block.tried)
        if self.level == "weight":
            at = torch.tensor(units, dtype=torch.int64)
            values = block.tried.view(count, -1)[:, self.offset + at].flatten()
            return self._placed((at + self.first).repeat(count), values)
        if len(units) == self.count:
            chosen = block.places[:, :, self.offset : self.offset + self.count]
        else:
            chosen = block.places[:, :, torch.tensor(units, dtype=torch.int64) + self.offset]
        rows, picks = chosen.flatten(1)
        return Candidates(self.layer, rows, None, None, block.pool, picks)

    def trying(self, units: Sequence[int], values: Tensor) -> Candidates:
        """Values for some of the units, as what an evaluator takes; units may come more than once."""
        return self._placed(torch.tensor(units, dtype=torch.int64) + self.first, values)

    def targets(self, units: Sequence[int], shares: Sequence[Sequence[float]]) -> Tensor:
        """Σ aᵢ·Sᵢ[u] of some units, in float64, (A, width) or (A,)."""
        weights = torch.tensor(shares, dtype=torch.float64, device=self.block.current.device).t()
        chosen = self._of(self.block.candidates, units)
        return mix(chosen, list(weights if self.level == "weight" else weights.unsqueeze(-1)))

    def stepped(self, units: Sequence[int], targets: Tensor, step: float) -> Tensor:
        """M[u] + t·(W − M[u]) of some units, rounded once, to the compute dtype."""
        return step_towards(self._of(self.block.current[None], units)[0], targets, step).to(self.block.current.dtype)

    def rows(self) -> tuple[int, int]:
        """The first row that has units of the window, and the one behind the last."""
        return self.place(0)[0], self.place(self.count - 1)[0] + 1

    def put(self, network: Network, unit: int, value: Tensor) -> None:
        """Puts a unit's value into the network."""
        row, column = self.place(unit)
        if column is None:
            network.assign_row(self.layer, row, value.to(network.dtype))
        else:
            network.assign_weight(self.layer, row, column, value.to(network.dtype))

    def put_all(self, network: Network, units: Sequence[int], values: Tensor) -> None:
        """Puts several units' values into the network."""
        at = torch.tensor(units, dtype=torch.int64) + self.first
        if self.level == "neuron":
            network.assign_rows(self.layer, at, values.to(network.dtype))
        else:
            width = self.layer.width
            network.assign_weights(self.layer, at // width, at % width, values.to(network.dtype))

    def place(self, unit: int) -> tuple[int, int | None]:
        """Row and column of a unit, counted in the window."""
        at = self.first + unit
        return (at, None) if self.level == "neuron" else divmod(at, self.layer.width)

    def _of(self, values: Tensor, units: Sequence[int]) -> Tensor:
        """The units' part of (C, R, width): (C, A, width) or (C, A)."""
        flat = values if self.level == "neuron" else values.flatten(1)
        if units[-1] - units[0] == len(units) - 1:
            return flat[:, self.offset + units[0] : self.offset + units[-1] + 1]
        return flat[:, torch.tensor(units, device=values.device) + self.offset]

    def _placed(self, at: Tensor, values: Tensor) -> Candidates:
        if self.level == "neuron":
            return Candidates(self.layer, at, None, values)
        return Candidates(self.layer, at // self.layer.width, at % self.layer.width, values)


class Reader:
    """Reads units of one layer, from the network and the sources, block by block."""

    def __init__(self, visitor: Visitor, layer: Layer) -> None:
        self._visitor = visitor
        self._layer = layer
        self._block: Block | None = None

    def window(self, level: Level, first: int, last: int) -> Window:
        """The window of these units; at most as far as the block that holds the first reaches."""
        width = 1 if level == "neuron" else self._layer.width
        row = first // width
        if self._block is None or not self._block.first <= row < self._block.last:
            self._block = self._read(row)
        return Window(self._block, level, first, min(last, self._block.last * width) - first)

    def _read(self, row: int) -> Block:
        visitor = self._visitor
        # At places that don't depend on where a resumed run begins, nor do then the last digits of a loss.
        first = row - row % _BLOCK_ROWS
        last = min(first + _BLOCK_ROWS, self._layer.neurons)
        current = visitor.context.network.rows(self._layer, first, last).to(visitor.dtype)
        sources = [self._rows(source, first, last) for source in visitor.context.sources]
        return Block(self._layer, first, current, sources, visitor.params.extras)

    def _rows(self, source: Source, first: int, last: int) -> Tensor:
        return self._layer.matrix(lambda name: source.read_rows(name, first, last))
