"""The outcome of a calibration: the table of trials, the best recipe, and the files with both."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cogram_core.calibration.settings import Setting
from cogram_core.evaluation.scores import Score
from cogram_core.recipe import Recipe
from cogram_core.recipe.reading import write_text


@dataclass(frozen=True)
class Trial:
    """One setting and what came of it: the last stage's result, before the guard. Number 0 has the recipe's own setting.

    ``evaluation`` is on the data that was decided on and that chooses between trials, hence flattering twice;
    ``holdout`` is on data that neither has seen. Decisions are counted over the calibrated stage.
    """

    number: int
    setting: Setting
    evaluation: Score
    holdout: Score
    accepted: int
    rolled_back: int
    seconds: float

    def to_document(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "number": self.number,
            "parameters": self.setting.parameters(),
            "evaluation": self.evaluation.to_document(),
            "holdout": self.holdout.to_document(),
            "accepted": self.accepted,
            "rolled_back": self.rolled_back,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Calibration:
    """A finished calibration: its output folder, all trials in order, the best one, and the recipe with its setting."""

    output: Path
    recipe: Recipe
    stage: int
    trials: tuple[Trial, ...]
    best: Trial

    @property
    def criterion(self) -> str:
        """What trials are compared by: the recipe's guard's."""
        return self.recipe.guard.criterion

    @property
    def holdout_unseen(self) -> bool:
        """Whether no decision of any stage looked at the holdout data."""
        return not any(stage.parameters.get("unit_guard") for stage in self.recipe.stages)

    @property
    def summary(self) -> str:
        """What was found, in plain words."""
        own, best, others = self.trials[0], self.best, len(self.trials) - 1
        what = f"evaluation {self.criterion.replace('_', ' ')}"
        seen = "which no decision and no choice has seen" if self.holdout_unseen else "which the unit guard has seen"
        if best is own:
            return (
                f"None of {others} other settings was better than the recipe's own, which stays ({what} "
                f"{self._shown(own.evaluation)}). On holdout data, {seen}: {self._shown(own.holdout)}."
            )
        return (
            f"Trial {best.number} of {others} is the best: {what} {self._shown(best.evaluation)}, with the recipe's own "
            f"setting {self._shown(own.evaluation)}. On holdout data, {seen}: {self._shown(best.holdout)} against "
            f"{self._shown(own.holdout)}{self._doubt()}."
        )

    def _shown(self, score: Score) -> str:
        return f"{abs(score.criterion(self.criterion)):.4f}"

    def _doubt(self) -> str:
        own, best = (trial.holdout.criterion(self.criterion) for trial in (self.trials[0], self.best))
        return "" if best < own else "; no better there, so stay with your own"

    def to_document(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "version": 1,
            "stage": self.stage,
            "criterion": self.criterion,
            "best": self.best.number,
            "holdout_unseen": self.holdout_unseen,
            "summary": self.summary,
            "trials": [trial.to_document() for trial in self.trials],
        }


def write_files(folder: Path, calibration: Calibration) -> None:
    """Writes ``calibration.json``, ``calibration.csv`` and ``recipe.calibrated.yaml`` into an existing folder."""
    document = json.dumps(calibration.to_document(), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "calibration.json").write_text(document + "\n", encoding="utf-8")
    rows = [_row(trial, calibration.best) for trial in calibration.trials]
    with (folder / "calibration.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    recipe = write_text(calibration.recipe.to_document())
    (folder / "recipe.calibrated.yaml").write_text(recipe, encoding="utf-8")


def _row(trial: Trial, best: Trial) -> dict[str, Any]:
    setting = asdict(trial.setting)
    steepness = {f"steepness_{level}": setting.pop(level) for level in ("layer", "neuron", "weight")}
    return {
        "trial": trial.number,
        "best": int(trial is best),
        **steepness,
        **setting,
        **_figures("evaluation", trial.evaluation.to_document()),
        **_figures("holdout", trial.holdout.to_document()),
        "accepted": trial.accepted,
        "rolled_back": trial.rolled_back,
        "seconds": round(trial.seconds, 3),
    }


def _figures(data: str, score: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{data}_{figure}": score[figure] for figure in ("loss", "calibrated_loss", "accuracy")}
