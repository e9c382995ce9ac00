"""Asks a question on every seed, and says how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.paper.measuring import fusion, sources
from bench.paper.storing import KEPT, Answer, Question, answer

FIGURES = Path(__file__).parent / "figures"
NAMES: Mapping[str, str] = {
    "iid-same": "IID, same start",
    "skewed-same": "skewed, same start",
    "iid-different": "IID, different starts",
    "skewed-different": "skewed, different starts",
    "digits-mlp": "digits, skewed, MLP",
    "digits-cnn": "digits, skewed, convolutions",
    "skewed-uneven": "skewed, second source hardly trained",
}
"""Settings in words."""

FISHER = ("fisher",)
# Written out, so that what was measured stays what it says when a default changes.
_PARAMETERS: Mapping[str, Any] = {
    "method": "cogram",
    "steepness": {"layer": 5.5, "neuron": 3.0, "weight": 1.0},
    "refinement": "passes",
    "max_sweeps": {"layer": 5, "neuron": 4, "weight": 1},
    "rollback": "all",
    "step": "backtrack",
    "competence": 0.0,
    "mode": "exact",
    "prototypes": {"kind": "all"},
}


def cogram(granularity: str, **changed: Any) -> tuple[Any, ...]:
    """Fisher, then CoGraM down to a level, with parameters of its own where ``changed`` has some."""
    return ("fisher", {**_PARAMETERS, "granularity": granularity, **changed})


@dataclass(frozen=True)
class Asking:
    """The seeds, and where answers are kept and figures are written."""

    seeds: Sequence[int]
    kept: Path = KEPT
    figures: Path = FIGURES

    def ask(self, measure: Callable[[Question], Answer], **question: Any) -> list[Answer]:
        """One answer a seed, in their order."""
        found = []
        for seed in self.seeds:
            found.append(answer(measure, {**question, "seed": seed}, self.kept))
            print(".", end="", file=sys.stderr, flush=True)
        return found

    def first(self, count: int) -> Asking:
        """The same with ``count`` seeds at most."""
        return replace(self, seeds=self.seeds[:count])

    def fused(self, setting: str, stages: Sequence[Any], guard: str = "report") -> list[Answer]:
        """See ``measuring.fusion``."""
        return self.ask(fusion, setting=setting, stages=list(stages), guard=guard)

    def sources(self, setting: str) -> list[Answer]:
        """See ``measuring.sources``."""
        return self.ask(sources, setting=setting)


def accuracies(answers: Sequence[Answer]) -> list[float]:
    """Test accuracy in %, one a seed."""
    return [found["test"] for found in answers]


def seeds(asking: Asking) -> str:
    """How many, in words."""
    return "1 seed" if len(asking.seeds) == 1 else f"{len(asking.seeds)} seeds"
