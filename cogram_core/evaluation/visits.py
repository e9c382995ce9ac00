"""Visits of many units in a row, by rules that are known beforehand: what an evaluator can take off its caller's hands."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from cogram_core.evaluation.evaluator import Pool
from cogram_core.networks.layers import Layer, Level


@dataclass(frozen=True)
class Rules:
    """How a unit's losses decide on it.

    Candidates are the sources, then the extra ones. ``known`` is the candidate that is the unit as it stands, None: there is
    none. ``handicaps`` has for each source what is taken off its loss, in nats; the shares are softmax(−steepness · losses).
    ``steps`` are tried in turn until a loss is below ``below`` times the one before.
    """

    sources: int
    known: int | None
    handicaps: tuple[float, ...]
    steepness: float
    steps: tuple[float, ...]
    below: float


@dataclass(frozen=True, eq=False)
class Run:
    """Units ``first`` to ``first + count − 1`` of a layer, to be visited in index order.

    They lie in a block of R rows from row ``block`` on: ``current`` (R, width) has the network's numbers, ``values``
    (C, R, width) the candidates', float64 and contiguous. ``pool`` has the candidates but the known one as rows.
    ``single`` says that values are rounded to float32. ``same``, uint8 (count,), has a 1 for each unit that no candidate can
    change. ``loss`` is the network's as it stands.
    """

    layer: Layer
    level: Level
    first: int
    count: int
    block: int
    current: Tensor
    values: Tensor
    pool: Pool
    single: bool
    same: Tensor
    loss: float


class Did(IntEnum):
    """What became of a unit."""

    SKIPPED = 0
    NOT_FINITE = 1
    ROLLED_BACK = 2
    MERGED = 3


@dataclass(frozen=True)
class Visited:
    """What was found, unit by unit: losses and shares of the candidates, the last step tried, the loss then.

    Where a unit was skipped, only ``did`` means something; where no source gave a finite loss, ``did`` and ``losses``.
    """

    did: list[Did]
    losses: list[tuple[float, ...]]
    shares: list[tuple[float, ...]]
    steps: list[float]
    after: list[float]
