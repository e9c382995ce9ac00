"""The values that are searched, and the order in which they are tried. Knows no network: it asks what a setting is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from cogram_core.methods.cogram.params import LEVELS, LevelSteepness, Params

# Around the recipe's own λ: a factor of two changes few shares by much, so the grid is wide and coarse.
FACTORS = (1 / 8, 1 / 4, 1 / 2, 2.0, 4.0, 8.0, 32.0)
MAX_STEEPNESS = 1e12  # the parameter's own limit
COMPETENCES = (0.0, 0.5, 1.0)
QUANTILES: tuple[tuple[float | None, float | None], ...] = (
    (None, 0.5),
    (None, 0.75),
    (None, 0.9),
    (0.1, None),
    (0.25, None),
    (0.5, None),
    (0.1, 0.9),
    (0.25, 0.75),
)
"""Pairs of τ_min and τ_max as quantiles of the layers' spreads; None: no threshold on this side."""


@dataclass(frozen=True)
class Setting:
    """A point of the search: λ of each level, κ, and the thresholds, as the parameters of the same names."""

    layer: float
    neuron: float
    weight: float
    competence: float
    refinement: Literal["passes", "thresholds"]
    tau: Literal["given", "auto"]
    tau_min: float
    tau_max: float | None

    @classmethod
    def of(cls, params: Params) -> Setting:
        """A stage's own values."""
        given = params.steepness
        levels = given if isinstance(given, LevelSteepness) else LevelSteepness(**dict.fromkeys(LEVELS, float(given)))
        return cls(
            levels.layer,
            levels.neuron,
            levels.weight,
            params.competence,
            params.refinement,
            params.tau,
            params.tau_min,
            params.tau_max,
        )

    def parameters(self) -> dict[str, Any]:
        """What a stage gets."""
        return {
            "steepness": {"layer": self.layer, "neuron": self.neuron, "weight": self.weight},
            "competence": self.competence,
            "refinement": self.refinement,
            "tau": self.tau,
            "tau_min": self.tau_min,
            "tau_max": self.tau_max,
        }


_Options = Callable[[Setting], Iterator[Setting]]


class Search:
    """One parameter after the other, each on a grid with the others at their best so far, until a round changes nothing.

    The first setting asked about is the recipe's own, so that a tie never replaces it.
    """

    def __init__(self, own: Setting, levels: Sequence[str], ask: Callable[[Setting], float], limit: int) -> None:
        """Prepares a search.

        Args:
            own: the recipe's values, the middle of the grids.
            levels: those that the granularity allows, coarse to fine.
            ask: what a setting is worth; smaller is better.
            limit: how many settings may be asked about, at least 1.
        """
        self._own = own
        self._levels = tuple(levels)
        self._ask = ask
        self._limit = limit
        self._values: dict[Setting, float] = {}

    def run(self, spreads: Callable[[], Sequence[float]]) -> Setting:
        """The best setting found, the earliest of equals.

        Args:
            spreads: the layers' spreads in nats; called once the recipe's own setting has been asked about.
        """
        self._try(self._own)
        coordinates = self._coordinates(spreads())
        before = None
        while before != self._best():
            before = self._best()
            for options in coordinates:
                for setting in options(self._best()):
                    self._try(setting)
        return before

    def _best(self) -> Setting:
        return min(self._values, key=self._values.__getitem__)

    def _try(self, setting: Setting) -> None:
        if setting not in self._values and len(self._values) < self._limit:
            self._values[setting] = self._ask(setting)

    def _coordinates(self, spreads: Sequence[float]) -> list[_Options]:
        found: list[_Options] = [self._steepness(level) for level in self._levels]
        found.append(lambda best: (replace(best, competence=competence) for competence in COMPETENCES))
        if len(self._levels) > 1:  # else there is nothing finer that a threshold could send a layer to
            found.append(lambda best: thresholds(best, spreads))
        return found

    def _steepness(self, level: str) -> _Options:
        middle: float = getattr(self._own, level) or getattr(LevelSteepness(), level)

        def options(best: Setting) -> Iterator[Setting]:
            for factor in (*FACTORS, 1.0):
                changed: dict[str, Any] = {level: min(middle * factor, MAX_STEEPNESS)}
                yield replace(best, **changed)

        return options


def thresholds(best: Setting, spreads: Sequence[float]) -> Iterator[Setting]:
    """The setting with other thresholds, taken from the layers' finite spreads; and without any."""
    yield replace(best, refinement="passes")
    known = [spread for spread in spreads if math.isfinite(spread)]
    for low, high in QUANTILES if known else ():
        yield replace(
            best,
            refinement="thresholds",
            tau="given",
            tau_min=0.0 if low is None else _quantile(known, low),
            tau_max=None if high is None else _quantile(known, high),
        )


def _quantile(spreads: Sequence[float], share: float) -> float:
    """Four digits, for the number is going to stand in a recipe."""
    return float(f"{np.quantile(spreads, share):.4g}")
