"""The report of a run: what was fused, what was decided, what came of it. ``report.json`` is this document."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, get_args

import torch

from cogram_core.methods.contract import StageChoice
from cogram_core.recipe import Recipe
from cogram_core.trace import Action, Decision


@dataclass
class LayerSummary:
    """What was decided about one layer in one stage; a tensor of a merging stage counts as a layer."""

    visits: int = 0
    merged: int = 0
    solved: int = 0
    aligned: int = 0
    trained: int = 0
    rolled_back: int = 0
    refined: int = 0
    skipped: int = 0
    gain: float = 0.0
    _shares: list[float] = field(default_factory=list)

    def add(self, decision: Decision) -> None:
        """Counts one decision."""
        self.visits += 1
        setattr(self, decision.action, getattr(self, decision.action) + 1)
        if decision.action != "merged":
            return
        if decision.loss_before is not None and decision.loss_after is not None:
            self.gain += decision.loss_before - decision.loss_after
        shares = decision.shares or ()
        self._shares = [a + b for a, b in zip(self._shares or [0.0] * len(shares), shares, strict=True)]

    def to_document(self) -> dict[str, Any]:
        """Plain data; ``mean_shares`` over the merged units, ``loss_gained`` in nats, null if not finite."""
        return {
            "visits": self.visits,
            "merged": self.merged,
            "solved": self.solved,
            "aligned": self.aligned,
            "trained": self.trained,
            "rolled_back": self.rolled_back,
            "refined": self.refined,
            "skipped": self.skipped,
            "mean_shares": [share / self.merged for share in self._shares] or None,
            "loss_gained": self.gain if math.isfinite(self.gain) else None,
        }


class Summary:
    """Summaries of all layers of all stages, kept as the decisions come."""

    def __init__(self) -> None:
        self._layers: dict[tuple[int, str], LayerSummary] = {}

    def add(self, decision: Decision) -> None:
        """Counts one decision."""
        self._layers.setdefault((decision.stage, decision.layer), LayerSummary()).add(decision)

    def to_document(self) -> list[dict[str, Any]]:
        """One entry a stage and layer, in the order of their first decision."""
        return [
            {"stage": stage, "layer": layer, **summary.to_document()}
            for (stage, layer), summary in self._layers.items()
        ]

    def totals(self) -> dict[str, int]:
        """Decisions by action, over everything."""
        actions = get_args(Action)
        return {action: sum(getattr(summary, action) for summary in self._layers.values()) for action in actions}


def build_report(
    *,
    recipe: Recipe,
    chosen: Sequence[StageChoice],
    verdict: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]],
    base: str | None,
    summary: Summary,
    differing_integers: Sequence[str],
    seconds: float,
    resumed_after: int,
    ignored_journals: Sequence[str],
    device: torch.device,
) -> dict[str, Any]:
    """The report as plain data; ``base`` is the base's digest, where there is one.

    ``chosen`` has the stages that the recipe left open, ``recipe`` being the resolved one.
    ``resumed_after`` is how many decisions were taken over from an earlier, killed run, 0 where there was none; ``seconds``
    are this run's alone. ``ignored_journals`` says which other journals were found, and why they were of no use.
    """
    return {
        "version": 1,
        "verdict": dict(verdict),
        "recipe": recipe.to_document(),
        "chosen": [{"method": one.method, "parameters": dict(one.parameters), "why": one.why} for one in chosen],
        "sources": [dict(source) for source in sources],
        "base": base,
        "decisions": summary.totals(),
        "layers": summary.to_document(),
        "integer_tensors": {"policy": "first", "differing": list(differing_integers)},
        "seconds": seconds,
        "resumed_after": resumed_after,
        "ignored_journals": list(ignored_journals),
        "environment": {
            "cogram_fusion": version("cogram-fusion"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(device),
            "threads": torch.get_num_threads(),
        },
    }
