"""Parameters that change nothing as the others stand, and stages that do nothing: said, for somebody meant them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cogram_core.errors import Problem
from cogram_core.recipe.methods import MethodEntry, with_defaults

_Values = Mapping[str, Any]


@dataclass(frozen=True)
class _Rule:
    """``parameters`` of ``method`` are of no use when ``idle`` holds of the stage's parameters."""

    method: str
    parameters: tuple[str, ...]
    idle: Callable[[_Values], bool]
    message: str


def _every_example(prototypes: Any) -> bool:
    if not isinstance(prototypes, Mapping):
        return False
    return prototypes["kind"] == "all" or (prototypes["kind"] == "auto" and prototypes["per_class"] is None)


_RULES = (
    _Rule(
        "cogram",
        ("tau", "tau_min", "tau_max", "tau_scale"),
        lambda values: bool(values["refinement"] == "passes"),
        "is looked at with refinement: thresholds, and here it is passes; write that, or take {name} out",
    ),
    _Rule(
        "cogram",
        ("tau_min", "tau_max"),
        lambda values: bool(values["refinement"] == "thresholds" and values["tau"] == "auto"),
        "is found by a dry pass with tau: auto; write tau: given, or take {name} out",
    ),
    _Rule(
        "cogram",
        ("max_backtracks",),
        lambda values: bool(values["step"] == "full"),
        "counts halvings, and step: full takes none; write step: backtrack, or take {name} out",
    ),
    _Rule(
        "cogram",
        ("prototypes.per_class",),
        lambda values: isinstance(values["prototypes"], Mapping) and values["prototypes"]["kind"] == "all",
        "counts groups, and kind: all makes none; choose another kind, or take {name} out",
    ),
    _Rule(
        "cogram",
        ("prototypes.weighted",),
        lambda values: _every_example(values["prototypes"]),
        "weighs groups, and every example is taken by itself; give per_class and another kind than all, or take {name} out",
    ),
)


def idle_problems(entry: MethodEntry, parameters: _Values, location: str) -> Iterator[Problem]:
    """What a stage was given in vain.

    A value that is a default anyway, the preset's or without one, was meant by nobody; and a stage with every parameter
    written out comes from a resolved recipe, or from a trace that is to be replayed.
    """
    if entry.schema["properties"].keys() <= parameters.keys():
        return
    values = with_defaults(entry, parameters)
    presets = [{}, {"preset": values["preset"]}] if "preset" in values else [{}]
    usual = [with_defaults(entry, preset) for preset in presets]
    for rule in _RULES:
        if rule.method != entry.name or not rule.idle(values):
            continue
        for name in rule.parameters:
            if _at(parameters, name) not in (None, *(_at(defaults, name) for defaults in usual)):
                message = rule.message.format(name=name.rpartition(".")[2])
                yield Problem(f"{location}.{name}", "recipe.unused_parameter", message)
    if entry.name == "finetune" and values["kickoff_epochs"] == values["epochs"] == 0:
        message = "trains for no epochs, neither kickoff_epochs nor epochs; give one of them, or take the stage out"
        yield Problem(location, "recipe.idle_stage", message)


def _at(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
