"""Makes a complete ``Recipe`` of a document, or one error with every problem in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cogram_core.errors import Problem, RecipeError
from cogram_core.recipe.document import PATTERNS, Recipe, Stage
from cogram_core.recipe.idle import idle_problems
from cogram_core.recipe.methods import catalogue, check_parameters, unknown_method, with_defaults
from cogram_core.recipe.reading import plain, read_text
from cogram_core.recipe.rules import Draft, expand_shorthand, with_usual_start
from cogram_core.recipe.wording import as_problems

__all__ = ["load", "parse", "read_text"]


def load(path: Path) -> Recipe:
    """See ``Recipe.load``."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"can't be read ({error.strerror}); check the path and its permissions"
        raise RecipeError([Problem(str(path), "recipe.unreadable", message)]) from error
    except UnicodeDecodeError as error:
        message = f"can't be read as UTF-8 text ({error}); save it as UTF-8"
        raise RecipeError([Problem(str(path), "recipe.unreadable", message)]) from error
    recipe = parse(read_text(text, str(path)))
    folder = path.resolve().parent
    return recipe.with_references({(ref.kind, ref.value): _found(folder, ref.value) for ref in recipe.references()})


def _found(folder: Path, value: str) -> str:
    try:
        return str((folder / Path(value).expanduser()).resolve())
    except RuntimeError:  # ~someone who isn't there: a folder that is called so, then
        return str((folder / value).resolve())


def parse(document: Mapping[str, Any]) -> Recipe:
    """See ``Recipe.from_document``."""
    if not isinstance(document, Mapping):
        raise RecipeError([Problem("", "recipe.syntax", "a recipe is a mapping with the keys sources and stages")])
    clean, problems = plain(document)
    if problems:
        raise RecipeError(problems)
    expanded, problems = expand_shorthand(clean)
    draft = Draft.of(expanded)
    if expanded.get("guard") is None:
        expanded["guard"] = draft.mode
    try:
        # Strict JSON validation takes a list for a tuple and an integer for a float, but never "1" for 1.
        recipe = Recipe.model_validate_json(json.dumps(expanded))
    except ValidationError as error:
        problems = [*as_problems(error, expanded, Recipe, "recipe", PATTERNS), *problems]
    problems += [*_stage_problems(draft.stages), *draft.problems()]
    problems.sort(key=lambda problem: problem.code == "recipe.missing_key")  # a mistyped key explains a missing one
    if problems:
        raise RecipeError(problems)
    stages = with_usual_start(recipe.stages, Stage(method="fisher"))
    return recipe.model_copy(update={"stages": tuple(_complete(stage) for stage in stages)})


def _complete(stage: Stage) -> Stage:
    return stage.model_copy(update={"parameters": with_defaults(catalogue()[stage.method], stage.parameters)})


def _stage_problems(stages: Sequence[Any]) -> list[Problem]:
    """Methods and their parameters, checked even where the rest of the document is wrong."""
    problems: list[Problem] = []
    for place, stage in enumerate(stages):
        if not isinstance(stage, Mapping) or not isinstance(stage.get("method"), str):
            continue
        location = f"stages[{place}]"
        entry = catalogue().get(stage["method"])
        if entry is None:
            problems.append(unknown_method(stage["method"], f"{location}.method"))
        else:
            parameters = {key: value for key, value in stage.items() if key != "method"}
            found = check_parameters(entry, parameters, location)
            # Where parameters are wrong it can't be told what the others are worth.
            problems += found or idle_problems(entry, parameters, location)
    return problems
