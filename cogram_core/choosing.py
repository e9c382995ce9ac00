"""Decides what a recipe leaves open and only its inputs can tell: stages, and the prototypes that they take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.prototypes import PrototypeParams, decide
from cogram_core.methods import METHODS
from cogram_core.methods.contract import ChoosingMethod, Given, parse_params
from cogram_core.recipe import Recipe, Stage
from cogram_core.recipe.methods import catalogue, with_defaults
from cogram_core.run import Inputs


def settled(recipe: Recipe, inputs: Inputs) -> tuple[Recipe, Inputs]:
    """The recipe with nothing left open, and the inputs with what was chosen and why."""
    recipe, inputs = _with_chosen_stages(recipe, inputs)
    return _with_prototypes(recipe, inputs.evaluation), inputs


def _with_chosen_stages(recipe: Recipe, inputs: Inputs) -> tuple[Recipe, Inputs]:
    """The recipe with stages in the place of one that chooses, and the inputs with what was chosen and why.

    A base that none of them takes differences to has done its part by then, and is left out.
    """
    (stage, *_) = recipe.stages
    method = METHODS[stage.method]
    if not isinstance(method, ChoosingMethod):
        return recipe, inputs
    given = Given(inputs.sources, inputs.network, inputs.evaluation, inputs.base is not None)
    chosen = method.choose(given, parse_params(method, stage.parameters))
    stages = tuple(
        Stage.model_validate({"method": one.method, **with_defaults(catalogue()[one.method], one.parameters)})
        for one in chosen
    )
    needed = any(catalogue()[one.method].needs_base for one in chosen)
    concrete = recipe.model_copy(update={"stages": stages, "base": recipe.base if needed else None})
    return concrete, replace(inputs, base=inputs.base if needed else None, chosen=tuple(chosen))


def _with_prototypes(recipe: Recipe, evaluation: Dataset | None) -> Recipe:
    """The recipe with the prototypes that the data asks for where it was left open."""
    if evaluation is None:
        return recipe
    stages = []
    for stage in recipe.stages:
        given = stage.parameters.get("prototypes")
        if isinstance(given, Mapping):
            decided = decide(PrototypeParams.model_validate(given), evaluation.holds_tokens)
            stage = stage.model_copy(update={"parameters": {**stage.parameters, "prototypes": decided.model_dump()}})
        stages.append(stage)
    return recipe.model_copy(update={"stages": tuple(stages)})
