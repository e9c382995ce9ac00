"""CoGraM's parameters."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from cogram_core.evaluation.prototypes import PrototypeParams
from cogram_core.methods.contract import Field, MethodParams

Level = Literal["layer", "neuron"]
_Steepness = Annotated[float, Field(ge=0, le=1e12)]  # far beyond winner-take-all, and far from overflow
_Sweeps = Annotated[int, Field(ge=0, le=1000)]


class LevelSteepness(BaseModel):
    """λ of each level."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: _Steepness = 5.5
    neuron: _Steepness = 1.0


class LevelSweeps(BaseModel):
    """Sweeps of each level, at most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: _Sweeps = 5
    neuron: _Sweeps = 2


class Params(MethodParams):
    """Parameters of ``cogram``."""

    ascending: ClassVar[tuple[tuple[str, str], ...]] = (("tau_min", "tau_max"),)

    granularity: Level = Field("layer", description="finest level allowed")
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
    tau_min: float = Field(0.0, ge=0, description="nats at layer level; a smaller spread is too uncertain to merge by")
    tau_max: Annotated[float, Field(ge=0)] | None = Field(
        None, description="nats at layer level; a larger spread is too coarse to merge at once; null: no limit"
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
    prototypes: PrototypeParams = Field(PrototypeParams(), description="what the losses are taken on")

    def steepness_at(self, level: Level, siblings: int) -> float:
        """λ for a unit of ``level`` that has ``siblings`` units in its layer, itself included."""
        steepness = self.steepness if isinstance(self.steepness, float) else getattr(self.steepness, level)
        return float(steepness) * (siblings if level != "layer" and self.steepness_scale == "units" else 1)

    @property
    def steps(self) -> tuple[float, ...]:
        """The steps to try in turn: 1, ½, ¼, …"""
        halvings = self.max_backtracks if self.step == "backtrack" else 0
        return tuple(0.5**halving for halving in range(halvings + 1))
