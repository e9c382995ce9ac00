"""The rules between a recipe's fields, and the defaults that depend on them.

They look at the document as it was given, not at a finished recipe, so that what is wrong between fields is told
together with what is wrong inside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cogram_core.errors import Problem
from cogram_core.recipe.document import Data, Recipe
from cogram_core.recipe.methods import MethodEntry, catalogue, unknown_method
from cogram_core.recipe.suggest import nearest


def expand_shorthand(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """``method: x`` as the one stage it stands for."""
    expanded = dict(document)
    method = expanded.pop("method", None)
    if method is None:
        return expanded, []
    if "stages" in expanded:
        return expanded, [Problem("method", "recipe.conflict", "give either method or stages, not both")]
    # A mistyped method is reported and taken for the one that was meant, so that the rest is checked as well.
    expanded["stages"] = [{"method": nearest(str(method), catalogue()) or "linear"}]
    known = isinstance(method, str) and method in catalogue()
    return expanded, [] if known else [unknown_method(str(method), "method")]


def with_usual_start(stages: tuple[Any, ...], first: Any) -> tuple[Any, ...]:
    """A refining or training stage with nothing to work on starts from ``first``; sources are aligned before that."""
    kinds = [catalogue()[stage.method].kind for stage in stages]
    if "choosing" in kinds:
        return stages
    place = next((place for place, kind in enumerate(kinds) if kind != "aligning"), len(stages))
    if place < len(stages) and kinds[place] == "merging":
        return stages
    return (*stages[:place], first, *stages[place:])


@dataclass(frozen=True)
class Draft:
    """What the rules ask of a document, as far as it can be told; a mistyped key is taken for the one that was meant."""

    sources: list[Any]
    counted: bool
    stages: list[Any]
    entries: list[MethodEntry | None]
    mode: str
    base: bool
    evaluation: bool
    holdout: bool
    training: bool | None
    """None where the data can't be read."""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Draft:
        """The draft of a document without shorthand."""
        meant = _as_meant(document, Recipe.model_fields)
        data = _as_meant(meant.get("data"), Data.model_fields)
        unreadable = not isinstance(meant.get("data", {}), Mapping | None)
        entries = [_entry(stage) for stage in _list(meant.get("stages"))]
        guard = meant.get("guard")
        mode = guard.get("mode") if isinstance(guard, Mapping) else guard
        named = any(value is not None for value in data.values())
        evaluated = named or any(entry is not None and entry.needs_data for entry in entries)
        literal = any(
            isinstance(stage, Mapping) and stage.get("preset") == "paper" for stage in _list(meant.get("stages"))
        )
        usual = "best_on_holdout" if evaluated and not literal else "off"
        return cls(
            sources=_list(meant.get("sources")),
            counted=isinstance(meant.get("sources"), list),
            stages=_list(meant.get("stages")),
            entries=entries,
            mode=str(mode) if guard is not None else usual,
            base=isinstance(meant.get("base"), str) and meant["base"] != "",
            evaluation=unreadable or data.get("evaluation") is not None,
            holdout=unreadable or data.get("holdout") is not None,
            training=None if unreadable else data.get("training") is not None,
        )

    def problems(self) -> Iterable[Problem]:
        """Everything that is wrong between fields."""
        yield from self._source_problems()
        yield from self._base_problems()
        yield from self._data_problems()
        yield from self._training_problems()
        yield from self._order_problems()
        yield from self._reference_problems()

    def _source_problems(self) -> Iterable[Problem]:
        if self.counted and len(self.sources) < 2:
            message = f"a fusion needs two or more sources, here is {len(self.sources)}; add one"
            yield Problem("sources", "recipe.too_few_sources", message)
        named = [source.get("name") for source in self.sources if isinstance(source, Mapping)]
        names = Counter(name for name in named if isinstance(name, str))  # what else stands there may not be hashable
        for name, count in names.items():
            if count > 1:
                message = f"the name {name!r} stands {count} times; names must differ"
                yield Problem("sources", "recipe.duplicate_name", message)
        for place, (stage, entry) in enumerate(zip(self.stages, self.entries, strict=True)):
            value = stage.get("source") if entry is not None and "source" in entry.schema["properties"] else None
            if isinstance(value, str) and value not in names and self.counted:
                message = f"there is no source {value!r}; name one of {', '.join(names)}"
                yield Problem(f"stages[{place}].source", "recipe.unknown_source", message)

    def _base_problems(self) -> Iterable[Problem]:
        known = [entry for entry in self.entries if entry is not None]
        needing = [entry.name for entry in known if entry.needs_base]
        choosing = any(entry.kind == "choosing" for entry in known)  # it is told by a base where sources come from
        if needing and not self.base:
            yield Problem("base", "recipe.missing_base", f"{needing[0]} takes differences to a base; name one")
        if self.base and not needing and not choosing and len(known) == len(self.entries) > 0:
            yield Problem("base", "recipe.unused_base", "no stage of this recipe uses a base; take it out")

    def _data_problems(self) -> Iterable[Problem]:
        own = [isinstance(source, Mapping) and source.get("data") is not None for source in self.sources]
        for place, entry in enumerate(self.entries):
            if entry is None or not entry.needs_data or self.evaluation or (entry.name != "cogram" and all(own)):
                continue
            if entry.kind == "training" and place > 0:
                continue
            name = f"{entry.name}, which starts from fisher" if entry.kind == "training" else entry.name
            message = f"stages[{place}] ({name}) decides on evaluation data; name a file with inputs and targets"
            yield Problem("data.evaluation", "recipe.missing_evaluation", message)
            break
        for place, stage in enumerate(self.stages):
            if isinstance(stage, Mapping) and stage.get("unit_guard") is True and not self.holdout:
                message = "unit_guard holds every move against holdout data; name a file, or leave unit_guard out"
                yield Problem(f"stages[{place}].unit_guard", "recipe.missing_holdout", message)
        if self.mode in {"best_on_holdout", "report"} and not self.holdout:
            message = f"the guard ({self.mode}) compares on holdout data; name a file, or write guard: off"
            yield Problem("data.holdout", "recipe.missing_holdout", message)

    def _training_problems(self) -> Iterable[Problem]:
        known = [(place, entry) for place, entry in enumerate(self.entries) if entry is not None]
        training = [f"stages[{place}] ({entry.name})" for place, entry in known if entry.kind == "training"]
        if training and self.training is False:
            message = f"{training[0]} takes gradient steps on training data; name a file with inputs and targets"
            yield Problem("data.training", "recipe.missing_training", message)
        if self.training and not training and len(known) == len(self.entries) > 0:
            message = "no stage of this recipe trains; take it out, or add a stage finetune"
            yield Problem("data.training", "recipe.unused_training", message)

    def _order_problems(self) -> Iterable[Problem]:
        """A merging stage makes the network anew; without a guard to compare them, an earlier one is work for nothing.

        Sources that are aligned after a network was made of them have nothing to do with it any more.
        """
        for place, entry in enumerate(self.entries):
            if entry is not None and entry.kind == "choosing" and len(self.entries) > 1:
                message = f"{entry.name} chooses all stages; take the others out, or name them all"
                yield Problem(f"stages[{place}]", "recipe.not_alone", message)
        for place, (before, after) in enumerate(pairwise(self.entries)):
            if before is None or after is None:
                continue
            if after.kind == "aligning" and before.kind != "aligning":
                message = (
                    f"{after.name} puts the sources' units in another order, and {before.name} has made a network "
                )
                message += f"of the old one; let {after.name} come first"
                yield Problem(f"stages[{place + 1}]", "recipe.aligned_late", message)
            if self.mode == "off" and before.kind != "aligning" and after.kind == "merging":
                message = f"{before.name} is overwritten by {after.name}, which merges anew; take one of them out"
                yield Problem(f"stages[{place}]", "recipe.overwritten_stage", message)

    def _reference_problems(self) -> Iterable[Problem]:
        """A stage that matches the sources to one of them names one that is there."""
        names = [source.get("name") if isinstance(source, Mapping) else None for source in self.sources]
        for place, stage in enumerate(self.stages):
            value = stage.get("reference") if isinstance(stage, Mapping) else None
            known = value in names if isinstance(value, str) else not isinstance(value, int) or value < len(names)
            if not known and self.counted:
                listed = ", ".join(f"{at} ({name})" for at, name in enumerate(names))
                message = f"{value!r} is none of the sources; give one's name or its place: {listed}"
                yield Problem(f"stages[{place}].reference", "recipe.unknown_reference", message)


def _as_meant(value: Any, known: Iterable[str]) -> dict[str, Any]:
    """A mapping with each unknown key under its nearest known one, where that isn't there."""
    if not isinstance(value, Mapping):
        return {}
    names = set(known)
    meant = {key: inner for key, inner in value.items() if key in names}
    for key, inner in value.items():
        if key not in names and (near := nearest(key, names)) is not None:
            meant.setdefault(near, inner)
    return meant


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _entry(stage: Any) -> MethodEntry | None:
    method = stage.get("method") if isinstance(stage, Mapping) else None
    near = nearest(method, catalogue()) if isinstance(method, str) else None
    return None if near is None else catalogue()[near]
