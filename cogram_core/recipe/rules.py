"""The rules between a recipe's fields, and the defaults that depend on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from cogram_core.errors import Problem
from cogram_core.recipe.document import Recipe
from cogram_core.recipe.methods import MethodEntry, catalogue, unknown_method


def expand_shorthand(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """``method: x`` as the stages it stands for; a refining first stage gets ``fisher`` before it."""
    expanded, problems = dict(document), []
    method = expanded.pop("method", None)
    if method is not None:
        if "stages" in expanded:
            problems.append(Problem("method", "recipe.conflict", "give either method or stages, not both"))
        elif not isinstance(method, str) or method not in catalogue():
            problems.append(unknown_method(str(method), "method"))
            expanded["stages"] = [{"method": "linear"}]  # so that the rest of the document is checked as well
        else:
            expanded["stages"] = [{"method": method}]
    stages = expanded.get("stages")
    if isinstance(stages, list) and (first := _entry(stages[0] if stages else None)) and first.kind == "refining":
        expanded["stages"] = [{"method": "fisher"}, *stages]
    return expanded, problems


def with_default_guard(document: Mapping[str, Any]) -> dict[str, Any]:
    """Without a word on the guard it is on wherever data takes part, and off where nothing can be evaluated."""
    if document.get("guard") is not None:
        return dict(document)
    data = document.get("data")
    stages = document.get("stages")
    evaluated = bool(data) or any(
        entry.needs_data for stage in (stages if isinstance(stages, list) else []) if (entry := _entry(stage))
    )
    return {**document, "guard": "best_on_holdout" if evaluated else "off"}


def _entry(stage: Any) -> MethodEntry | None:
    method = stage.get("method") if isinstance(stage, Mapping) else None
    return catalogue().get(method) if isinstance(method, str) else None


def rule_problems(recipe: Recipe) -> list[Problem]:
    """Everything that is wrong between the fields of a recipe whose fields are each valid."""
    entries = [catalogue()[stage.method] for stage in recipe.stages]
    return [
        *_source_problems(recipe),
        *_base_problems(recipe, entries),
        *_data_problems(recipe, entries),
        *_guard_problems(recipe),
        *_stage_order_problems(recipe, entries),
    ]


def _source_problems(recipe: Recipe) -> list[Problem]:
    problems = []
    if len(recipe.sources) < 2:
        count = len(recipe.sources)
        problems.append(
            Problem("sources", "recipe.too_few_sources", f"a fusion needs two or more sources, here is {count}")
        )
    counts = Counter(source.name for source in recipe.sources)
    problems += [
        Problem("sources", "recipe.duplicate_name", f"the name {name!r} stands {count} times; names must differ")
        for name, count in counts.items()
        if count > 1
    ]
    return problems


def _base_problems(recipe: Recipe, entries: list[MethodEntry]) -> list[Problem]:
    needing = [entry.name for entry in entries if entry.needs_base]
    if needing and recipe.base is None:
        return [Problem("base", "recipe.missing_base", f"{needing[0]} takes differences to a base; name one")]
    if recipe.base is not None and not needing:
        return [Problem("base", "recipe.unused_base", "no stage of this recipe uses a base; take it out")]
    return []


def _data_problems(recipe: Recipe, entries: list[MethodEntry]) -> list[Problem]:
    if recipe.data.evaluation is not None:
        return []
    problems = []
    everyone_has_data = all(source.data is not None for source in recipe.sources)
    for place, entry in enumerate(entries):
        if entry.needs_data and not (entry.kind == "merging" and everyone_has_data):
            problems.append(
                Problem(
                    "data.evaluation",
                    "recipe.missing_evaluation",
                    f"stages[{place}] ({entry.name}) decides on evaluation data; name a file with inputs and targets",
                )
            )
    return problems[:1]


def _guard_problems(recipe: Recipe) -> list[Problem]:
    if recipe.guard.mode == "off" or recipe.data.holdout is not None:
        return []
    return [
        Problem(
            "data.holdout",
            "recipe.missing_holdout",
            f"the guard ({recipe.guard.mode}) compares on holdout data; name a file, or write guard: off",
        )
    ]


def _stage_order_problems(recipe: Recipe, entries: list[MethodEntry]) -> list[Problem]:
    """A merging stage makes the network anew; without a guard to compare them, an earlier one is work for nothing."""
    if recipe.guard.mode != "off":
        return []
    return [
        Problem(
            f"stages[{place}]",
            "recipe.overwritten_stage",
            f"{before.name} is overwritten by {after.name}, which merges anew; take one of them out",
        )
        for place, (before, after) in enumerate(pairwise(entries))
        if after.kind == "merging"
    ]
