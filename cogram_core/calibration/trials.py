"""What a setting is worth: the recipe's stages from the calibrated one on, scored on the evaluation and holdout data."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from cogram_core.calibration.outcome import Trial
from cogram_core.calibration.settings import Setting
from cogram_core.evaluation.scores import score
from cogram_core.guard import as_written
from cogram_core.networks.network import Network
from cogram_core.observer import Observer, SilentObserver, StageInfo
from cogram_core.output import output_dtypes
from cogram_core.recipe import Recipe
from cogram_core.run import Inputs, Run
from cogram_core.trace import Decision

CALIBRATING = StageInfo(0, 1, "calibrate")


class Trials:
    """Tries settings of one stage, each from the same start. Holds one more copy of the network for that."""

    def __init__(
        self, recipe: Recipe, inputs: Inputs, stage: int, *, limit: int, folder: Path, observer: Observer
    ) -> None:
        """Carries out the stages before the calibrated one.

        Args:
            recipe: resolved; it needs a network, evaluation and holdout data.
            inputs: of that recipe.
            stage: the place of the calibrated stage.
            limit: trials at most, for the progress.
            folder: for the runs' journals, which are removed again.
            observer: hears of the progress.
        """
        assert inputs.network is not None
        assert inputs.evaluation is not None
        assert inputs.holdout is not None
        self.done: list[Trial] = []
        self.spreads: tuple[float, ...] = ()
        self._recipe = recipe
        self._inputs = inputs
        self._network: Network = inputs.network
        self._evaluation, self._holdout = inputs.evaluation, inputs.holdout
        self._stage = stage
        self._limit = limit
        self._folder = folder
        self._observer = observer
        self._dtypes = output_dtypes(recipe, inputs.sources[0].store)
        self._run(recipe, slice(stage))
        self._start = self._network.state()

    def ask(self, setting: Setting) -> float:
        """Tries a setting and keeps the trial in ``done``.

        Returns:
            The guard's criterion on the whole evaluation data; smaller is better.
        """
        started = time.monotonic()
        self._network.load(self._start.__getitem__)
        heard = self._run(with_setting(self._recipe, self._stage, setting), slice(self._stage, None))
        if not self.done:
            self.spreads = tuple(heard.spreads)
        with as_written(self._network, self._dtypes):
            evaluation, holdout = (score(self._network, data) for data in (self._evaluation, self._holdout))
        seconds = time.monotonic() - started
        trial = Trial(len(self.done), setting, evaluation, holdout, heard.accepted, heard.rolled_back, seconds)
        self.done.append(trial)
        self._observer.progress(CALIBRATING, len(self.done), self._limit)
        return evaluation.criterion(self._recipe.guard.criterion)

    def _run(self, recipe: Recipe, stages: slice) -> _Listener:
        listener = _Listener(self._observer, self._stage)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            run = Run(recipe, self._inputs, Path(folder), listener)
            try:
                run.carry_out_stages(self._network, stages)
            finally:
                run.close()
        return listener


class _Listener(SilentObserver):
    """Hears one run: counts the calibrated stage's decisions and notes the spreads of its first sweep over the layers.

    Nothing is told of a run's stages: a calibration has many, and one bar.
    """

    def __init__(self, observer: Observer, stage: int) -> None:
        self.accepted = 0
        self.rolled_back = 0
        self.spreads: list[float] = []
        self._observer = observer
        self._stage = stage

    def decision(self, decision: Decision) -> None:
        """Counts."""
        if decision.stage != self._stage:
            return
        self.accepted += decision.action == "merged"
        self.rolled_back += decision.action == "rolled_back"
        if decision.sweep == 0 and decision.kind == "layer" and decision.spread is not None:
            self.spreads.append(decision.spread)

    def should_stop(self) -> bool:
        """As the calibration's observer says."""
        return self._observer.should_stop()


def with_setting(recipe: Recipe, stage: int, setting: Setting) -> Recipe:
    """The recipe with a setting in one of its stages."""
    stages = list(recipe.stages)
    parameters = {**stages[stage].parameters, **setting.parameters()}
    stages[stage] = stages[stage].model_copy(update={"parameters": parameters})
    return recipe.model_copy(update={"stages": tuple(stages)})
