"""Preflight of a recipe whose inputs lie in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cogram_core.errors import InvalidInput, Problem
from cogram_core.preflight.checks import Preflight, preflight
from cogram_core.preflight.data import DatasetFacts, read_dataset_facts
from cogram_core.preflight.summaries import CheckpointSummary, summarise_checkpoint
from cogram_core.recipe import Recipe


def preflight_files(recipe: Recipe, paths: Mapping[str, Path]) -> Preflight:
    """Looks at every header that a recipe refers to.

    Args:
        recipe: what is to be run.
        paths: the file or folder of each reference.

    Raises:
        InvalidInput: with all problems of all inputs.
    """
    problems: list[Problem] = []
    checkpoints: dict[str, CheckpointSummary] = {}
    datasets: dict[str, DatasetFacts] = {}
    for reference in recipe.references():
        path = paths[reference.value]
        try:
            if reference.kind == "checkpoint":
                checkpoints[reference.value] = summarise_checkpoint(path)
            else:
                datasets[reference.value] = read_dataset_facts(path)
        except InvalidInput as error:
            problems += [Problem(f"{reference.location}: {p.location}", p.code, p.message) for p in error.problems]
        except OSError as error:
            message = f"{path} can't be read ({error.strerror}); check the path and its permissions"
            problems.append(Problem(reference.location, f"{reference.kind}.unreadable", message))
    if problems:
        raise InvalidInput(problems)
    found = preflight(recipe, checkpoints, datasets)
    if found.problems:
        raise InvalidInput(found.problems)
    return found
