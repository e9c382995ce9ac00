"""The values that are searched, and the order in which they are tried. Knows no network: it asks what a setting is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import numpy as np

from cogram_core.methods.cogram.params import LEVELS, LevelSteepness, Params

# Around the recipe's own λ: a factor of two changes few shares by much, so the grid is wide and coarse.
FACTORS = (2.0, 1 / 2, 4.0, 1 / 4, 8.0, 1 / 8, 32.0, 1.0)
MAX_STEEPNESS = 1e12  # the parameter's own limit
COMPETENCES = (0.5, 1.0, 0.0)
QUANTILES: tuple[tuple[float | None, float | None], ...] = (
    (0.1, 0.9),
    (None, 0.75),
    (0.25, None),
    (None, 0.5),
    (0.5, None),
    (0.25, 0.75),
    (None, 0.9),
    (0.1, None),
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
    tau_scale: Literal["share", "absolute"]

    @classmethod
    def of(cls, params: Params) -> Setting:
        """A stage's own values; the defaults where one changes nothing as the others stand, for a recipe refuses it then."""
        given = params.steepness
        levels = given if isinstance(given, LevelSteepness) else LevelSteepness(**dict.fromkeys(LEVELS, float(given)))
        own = cls(
            levels.layer,
            levels.neuron,
            levels.weight,
            params.competence,
            params.refinement,
            params.tau,
            params.tau_min,
            params.tau_max,
            params.tau_scale,
        )
        if own.refinement == "passes":
            return replace(own, **_WITHOUT_THRESHOLDS)
        return replace(own, tau_min=_DEFAULTS.tau_min, tau_max=_DEFAULTS.tau_max) if own.tau == "auto" else own

    def parameters(self) -> dict[str, Any]:
        """What a stage gets."""
        return {
            "steepness": {"layer": self.layer, "neuron": self.neuron, "weight": self.weight},
            "competence": self.competence,
            "refinement": self.refinement,
            "tau": self.tau,
            "tau_min": self.tau_min,
            "tau_max": self.tau_max,
            "tau_scale": self.tau_scale,
        }


_Change = Mapping[str, Any]
_DEFAULTS = Params()
_WITHOUT_THRESHOLDS: _Change = {
    "refinement": "passes",
    "tau": _DEFAULTS.tau,
    "tau_min": _DEFAULTS.tau_min,
    "tau_max": _DEFAULTS.tau_max,
    "tau_scale": _DEFAULTS.tau_scale,
}


class Search:
    """One change of the best setting so far after the other, each parameter on a grid, until a round changes nothing.

    A round goes through the parameters by turns, finest level first and what lies nearest first, so that a few trials
    reach each of them. The first setting asked about is the recipe's own, so that a tie never replaces it.
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
        changes = self._changes(spreads())
        before = None
        while before != self._best():
            before = self._best()
            for change in changes:
                self._try(replace(self._best(), **change))
        return before

    def _best(self) -> Setting:
        return min(self._values, key=self._values.__getitem__)

    def _try(self, setting: Setting) -> None:
        if setting not in self._values and len(self._values) < self._limit:
            self._values[setting] = self._ask(setting)

    def _changes(self, spreads: Sequence[float]) -> list[_Change]:
        grids = [self._steepness(level) for level in reversed(self._levels)]
        grids.append([{"competence": competence} for competence in COMPETENCES])
        if len(self._levels) > 1:  # else there is nothing finer that a threshold could send a layer to
            grids.append(thresholds(spreads, self._own.tau_scale))
        return [change for turn in zip_longest(*grids) for change in turn if change is not None]

    def _steepness(self, level: str) -> list[_Change]:
        middle: float = getattr(self._own, level) or getattr(LevelSteepness(), level)
        return [{level: min(middle * factor, MAX_STEEPNESS)} for factor in FACTORS]


def thresholds(spreads: Sequence[float], scale: Literal["share", "absolute"]) -> list[_Change]:
    """Changes to thresholds taken from the layers' finite spreads, and to none; ``scale`` is the recipe's own."""
    known = [spread for spread in spreads if math.isfinite(spread)]
    found: list[_Change] = [
        {
            "refinement": "thresholds",
            "tau": "given",
            "tau_min": 0.0 if low is None else _quantile(known, low),
            "tau_max": None if high is None else _quantile(known, high),
            "tau_scale": scale,
        }
        for low, high in (QUANTILES if known else ())
    ]
    return [_WITHOUT_THRESHOLDS, *found]


def _quantile(spreads: Sequence[float], share: float) -> float:
    """Four digits, for the number is going to stand in a recipe."""
    return float(f"{np.quantile(spreads, share):.4g}")
