"""Calibrates a recipe: checks it, tries settings, writes the table and the best recipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cogram_core.calibration.outcome import Calibration, write_files
from cogram_core.calibration.settings import Search, Setting
from cogram_core.calibration.trials import CALIBRATING, Trials, with_setting
from cogram_core.checkpoints.atomic import abandoned_folders, atomic_folder
from cogram_core.errors import InvalidInput, Problem
from cogram_core.methods.cogram.params import LEVELS, Params
from cogram_core.observer import Observer, SilentObserver
from cogram_core.pipeline import opened, parse, paths_of, writable
from cogram_core.recipe import Recipe
from cogram_core.sources import check_finite
from cogram_core.stopping import stoppable

MAX_TRIALS = 40


def calibrate(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    output: str | Path,
    *,
    inputs: Mapping[str, Path] | None = None,
    stage: int | None = None,
    trials: int = MAX_TRIALS,
    observer: Observer | None = None,
) -> Calibration:
    """Searches λ, κ, τ_min and τ_max of a recipe's CoGraM stage, and writes the table and the best recipe.

    Settings are compared by the guard's criterion on the whole evaluation data. Beside it the table has the figures on
    holdout data, which take no part in the choice. The search goes through fixed grids, the parameters by turns; nothing
    in it is random, so the same recipe gives the same table, unless a stage has a ``time_budget``, which ends by the clock.

    Args:
        recipe: a recipe, a parsed document, or the path of a YAML or JSON file.
        output: the folder to write; it appears complete by one rename, and must not exist before, or be empty.
        inputs: local paths by reference, for recipes whose references are names and not paths.
        stage: the 0-based place of the CoGraM stage; needed only where the recipe has more than one.
        trials: settings to try at most, at least 1; fewer if nothing is left that improves.
        observer: hears of the progress and may stop the calibration.

    Raises:
        InvalidInput: listing everything that is wrong with the recipe or its inputs; nothing was written.
        OutputError: if the folder can't be written.
        FusionStopped: if the observer asked for it; nothing was written.
    """
    parsed = parse(recipe)
    place = _check(parsed, stage, trials)
    heard = observer or SilentObserver()
    with ExitStack() as stack, stoppable(heard):
        stack.enter_context(abandoned_folders(Path(output)))
        folder = stack.enter_context(atomic_folder(Path(output)))
        stack.enter_context(writable(output))
        paths = paths_of(parsed, inputs or {})
        resolved, loaded = stack.enter_context(opened(parsed, paths))
        check_finite(loaded.sources)
        heard.stage_started(CALIBRATING)
        tried = Trials(resolved, loaded, place, limit=trials, folder=folder, observer=heard)
        params = Params.model_validate(resolved.stages[place].parameters)
        search = Search(Setting.of(params), LEVELS[: params.finest + 1], tried.ask, trials)
        setting = search.run(lambda: tried.spreads)
        heard.stage_finished(CALIBRATING)
        best = next(trial for trial in tried.done if trial.setting == setting)
        written = with_setting(_with_full_paths(parsed, paths), place, setting)
        found = Calibration(Path(output), written, place, tuple(tried.done), best)
        write_files(folder, found)
    return found


def _check(recipe: Recipe, stage: int | None, trials: int) -> int:
    """The place of the stage to calibrate."""
    problems = []
    places = [place for place, entry in enumerate(recipe.stages) if entry.method == "cogram"]
    listed = ", ".join(map(str, places))
    if not places:
        message = (
            "none of them is cogram, whose parameters a calibration searches; add one, or fuse without calibrating"
        )
        problems.append(Problem("stages", "calibration.no_stage", message))
    elif stage is None and len(places) > 1:
        message = f"{len(places)} of them are cogram (at {listed}); say which one is to be calibrated, with stage"
        problems.append(Problem("stages", "calibration.which_stage", message))
    elif stage is not None and stage not in places:
        message = f"there is no cogram stage at {stage}; cogram stands at {listed} (the first stage is 0)"
        problems.append(Problem("stage", "calibration.no_stage", message))
    for name in ("evaluation", "holdout"):
        if getattr(recipe.data, name) is None:
            message = "a calibration compares on evaluation data and reports on holdout data; name a file"
            problems.append(Problem(f"data.{name}", f"recipe.missing_{name}", message))
    if trials < 1:
        problems.append(Problem("trials", "calibration.too_few_trials", f"must be at least 1; here {trials}"))
    if problems:
        raise InvalidInput(problems)
    return places[0] if stage is None else stage


def _with_full_paths(recipe: Recipe, paths: Mapping[str, Path]) -> Recipe:
    """The recipe, to be written into a folder of its own: there, a path has to be a full one."""
    return recipe.with_references(
        {(ref.kind, ref.value): str(paths[ref.value].resolve()) for ref in recipe.references()}
    )
