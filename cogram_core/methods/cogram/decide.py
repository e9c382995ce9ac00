"""One decision: what the losses of a unit's candidates say, without touching the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cogram_core.methods.cogram.params import Params
from cogram_core.mixing import softmax_shares
from cogram_core.networks.layers import Layer, Level


@dataclass(frozen=True)
class Thresholds:
    """Spreads in nats between which a unit is merged as a whole; None: no limit."""

    low: float
    high: float | None

    def refine(self, spread: float) -> str | None:
        """Why a unit of this spread should be looked at more finely, if it should."""
        if spread < self.low:
            return f"spread below tau_min {self.low:.3g}: uncertain"
        if self.high is not None and spread > self.high:
            return f"spread above tau_max {self.high:.3g}: too coarse"
        return None

    def shared(self, children: int) -> Thresholds:
        """What one of so many children gets of them."""
        return Thresholds(self.low / children, None if self.high is None else self.high / children)


@dataclass(frozen=True)
class Judgement:
    """What is to be done with a unit. ``shares`` is None where it isn't to be merged, ``reason`` then says why."""

    losses: tuple[float, ...]
    spread: float
    shares: tuple[float, ...] | None
    refine: bool = False
    reason: str = ""


class Judge:
    """Turns losses into shares. ``handicaps`` has for each source what is taken off its losses at layer level, in nats."""

    def __init__(self, params: Params, sources: int, handicaps: Sequence[float]) -> None:
        self._params = params
        self._sources = sources
        self._handicaps = tuple(handicaps)

    def judge(
        self, losses: Sequence[float], level: Level, siblings: int, thresholds: Thresholds | None = None
    ) -> Judgement:
        """Steps 2 to 4 of a visit.

        Args:
            losses: of the sources, then of the extra candidates, in nats.
            level: the unit's.
            siblings: how many such units its layer has.
            thresholds: where the unit may be refined; None where it must be decided as a whole.

        Source: arXiv:2512.03610, mixing factor and granularity; competence and extra candidates are this project's.
        """
        found = tuple(losses)
        of_sources = found[: self._sources]
        finite = [loss for loss in of_sources if math.isfinite(loss)]
        spread = max(finite) - min(finite) if len(finite) == self._sources else math.inf
        if not finite:
            return Judgement(found, spread, None, reason="no source gives a finite loss")
        if thresholds is not None and (reason := thresholds.refine(spread)) is not None:
            return Judgement(found, spread, None, refine=True, reason=reason)
        # A unit's share of a source's overall advantage, as it moves the loss by its share.
        units = siblings if self._params.steepness_scale == "units" else 1
        fair = [loss - handicap / units for loss, handicap in zip(of_sources, self._handicaps, strict=True)]
        shares = softmax_shares([*fair, *found[self._sources :]], self._params.steepness_at(level, siblings))
        return Judgement(found, spread, shares)


def siblings_of(layer: Layer, level: Level) -> int:
    """How many units of a level a layer has."""
    return {"layer": 1, "neuron": layer.neurons, "weight": layer.neurons * layer.width}[level]
