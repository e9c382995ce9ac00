"""CoGraM's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from cogram_core.evaluation.prototypes import PrototypeParams
from cogram_core.methods.contract import Field, MethodParams
from cogram_core.networks.layers import Level

Extra = Literal["current", "average"]
_Steepness = Annotated[float, Field(ge=0, le=1e12)]  # far beyond winner-take-all, and far from overflow
_Sweeps = Annotated[int, Field(ge=0, le=1000)]
EXTRAS: tuple[Extra, ...] = ("current", "average")
LEVELS: tuple[Level, ...] = ("layer", "neuron", "weight")


class LevelSteepness(BaseModel):
    """λ of each level."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: _Steepness = 5.5
    neuron: _Steepness = 3.0
    weight: _Steepness = 1.0


class LevelSweeps(BaseModel):
    """Sweeps of each level, at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: _Sweeps = 5
    neuron: _Sweeps = 4
    weight: _Sweeps = 1


def _as_set(value: object) -> object:
    """A list of different names, as documents have it; behind the preset's validator, strict JSON takes none for a set."""
    names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return frozenset(value) if names and len(set(value)) == len(value) else value  # type: ignore[arg-type, call-overload]


class Params(MethodParams):
    """Parameters of ``cogram``."""

    ascending: ClassVar[tuple[tuple[str, str], ...]] = (("tau_min", "tau_max"),)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "steepness": 5.5,
            "steepness_scale": "flat",
            "refinement": "thresholds",
            "tau_min": 0.01,
            "tau_max": 1.0,
            "tau_scale": "absolute",
            "max_sweeps": {"layer": 1, "neuron": 1, "weight": 1},
            "rollback": "fine",
            "step": "full",
            "tolerance": 0.0,
            "prototypes": {"kind": "geometric", "per_class": 1},
        }
    }

    preset: Literal["paper"] | None = Field(
        None,
        description="paper: the most literal reading of the paper wherever nothing else is given, and no guard",
    )
    granularity: Level = Field("neuron", description="finest level allowed")
    steepness: LevelSteepness | _Steepness = Field(
        LevelSteepness(), description="λ, hardness of the mix; large is winner-take-all; one number for every level"
    )
    steepness_scale: Literal["units", "flat"] = Field(
        "units",
        description="units: below layer level λ is multiplied by the number of sibling units, for a unit moves the loss "
        "by its share; flat: not multiplied",
    )
    refinement: Literal["passes", "thresholds"] = Field(
        "passes",
        description="passes: one level after the other over all layers; thresholds: the spread sends single units finer",
    )
    tau: Literal["given", "auto"] = Field(
        "given",
        description="auto: tau_min and tau_max are the 10 % and 90 % points of the layers' spreads, found by a dry pass",
    )
    tau_min: float = Field(0.0, ge=0, description="nats at layer level; a smaller spread is too uncertain to merge by")
    tau_max: Annotated[float, Field(ge=0)] | None = Field(
        None, description="nats at layer level; a larger spread is too coarse to merge at once; null: no limit"
    )
    tau_scale: Literal["share", "absolute"] = Field(
        "share",
        description="share: a neuron's thresholds are its layer's divided by the number of neurons; absolute: the same at "
        "every level",
    )
    max_sweeps: LevelSweeps = Field(
        LevelSweeps(), description="sweeps of each level, at most; with thresholds, layer counts the passes"
    )
    min_gain: float = Field(1e-4, ge=0, description="nats; a sweep that gains less is the last of its level")
    rollback: Literal["all", "fine"] = Field(
        "all",
        description="all: a merge that doesn't lower the loss is undone; fine: at layer level it stays (the paper)",
    )
    step: Literal["backtrack", "full"] = Field(
        "backtrack",
        description="backtrack: a rejected merge is tried again half the way; full: no second try (the paper)",
    )
    max_backtracks: int = Field(2, ge=0, le=30, description="halvings, at most")
    tolerance: float = Field(1e-6, ge=0, lt=1, description="ε: accepted if the loss falls below (1 − ε) of what it was")
    competence: float = Field(
        0.0,
        ge=0,
        le=100,
        description="κ: how much of a source's overall advantage is taken out of every local decision; 1: all of it",
    )
    extra_candidates: Annotated[frozenset[Extra], BeforeValidator(_as_set)] = Field(
        frozenset(),
        description="what joins the mix: current, the unit as it stands; average, the sources' plain mean",
    )
    unit_guard: bool = Field(False, description="an accepted move must also not raise the holdout loss")
    mode: Literal["exact", "blockwise"] = Field(
        "exact",
        description="exact: below layer level, one unit after the other; blockwise: the improving moves of 32 units are "
        "accepted together if their joint loss falls, else by halves",
    )
    max_decisions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="ends the stage after so many decisions; null: no limit"
    )
    time_budget: Annotated[float, Field(gt=0)] | None = Field(
        None, description="seconds, after which the stage ends; what it had accepted stays; null: no limit"
    )
    prototypes: PrototypeParams = Field(PrototypeParams(), description="what the losses are taken on")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        preset = values.get("preset") if isinstance(values, Mapping) else None
        return {**cls.presets[preset], **values} if isinstance(preset, str) and preset in cls.presets else values

    @property
    def finest(self) -> int:
        """The place in ``LEVELS`` of the finest level allowed."""
        return LEVELS.index(self.granularity)

    @property
    def extras(self) -> tuple[Extra, ...]:
        """``extra_candidates`` in the order in which they stand behind the sources."""
        return tuple(extra for extra in EXTRAS if extra in self.extra_candidates)

    def steepness_at(self, level: Level, siblings: int) -> float:
        """λ for a unit of ``level`` that has ``siblings`` units of its kind in its layer, itself included."""
        steepness = self.steepness if isinstance(self.steepness, float) else getattr(self.steepness, level)
        return float(steepness) * (siblings if level != "layer" and self.steepness_scale == "units" else 1)

    @property
    def steps(self) -> tuple[float, ...]:
        """The steps to try in turn: 1, ½, ¼, …"""
        halvings = self.max_backtracks if self.step == "backtrack" else 0
        return tuple(0.5**halving for halving in range(halvings + 1))
