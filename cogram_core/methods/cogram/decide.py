"""One decision: what the losses of a unit's candidates say, without touching the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cogram_core.evaluation.visits import Rules
from cogram_core.methods.cogram.params import Params
from cogram_core.mixing import softmax_shares
from cogram_core.networks.layers import Layer, Level

NOT_FINITE = "no source gives a finite loss"
"""Why a unit is skipped whose sources can't be told apart."""
ROUNDING = 1e-12
"""Relative; what a unit that no example feels can move a loss by, since candidates are not batched as whole passes are."""


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
        spread = spread_of(of_sources)
        if not any(math.isfinite(loss) for loss in of_sources):
            return Judgement(found, spread, None, reason=NOT_FINITE)
        if thresholds is not None and (reason := thresholds.refine(spread)) is not None:
            return Judgement(found, spread, None, refine=True, reason=reason)
        handicaps = self._handicaps_of_a_unit(siblings)
        fair = [loss - handicap for loss, handicap in zip(of_sources, handicaps, strict=True)]
        shares = softmax_shares([*fair, *found[self._sources :]], self._params.steepness_at(level, siblings))
        return Judgement(found, spread, shares)

    def rules(self, level: Level, siblings: int) -> Rules:
        """The same as rules that an evaluator can go by, where no unit may be refined."""
        params = self._params
        return Rules(
            sources=self._sources,
            known=self._sources + params.extras.index("current") if "current" in params.extras else None,
            handicaps=self._handicaps_of_a_unit(siblings),
            steepness=params.steepness_at(level, siblings),
            steps=params.steps,
            below=self.below,
        )

    @property
    def below(self) -> float:
        """The share of the loss that an accepted move's loss stays below."""
        return 1 - max(self._params.tolerance, ROUNDING)

    def _handicaps_of_a_unit(self, siblings: int) -> tuple[float, ...]:
        """A unit's share of the sources' overall advantages, as it moves the loss by its share."""
        units = siblings if self._params.steepness_scale == "units" else 1
        return tuple(handicap / units for handicap in self._handicaps)


def spread_of(losses: Sequence[float]) -> float:
    """The most less the least of the sources' losses, in nats; infinity if one isn't finite."""
    return max(losses) - min(losses) if all(math.isfinite(loss) for loss in losses) else math.inf


def siblings_of(layer: Layer, level: Level) -> int:
    """How many units of a level a layer has."""
    return {"layer": 1, "neuron": layer.neurons, "weight": layer.neurons * layer.width}[level]
