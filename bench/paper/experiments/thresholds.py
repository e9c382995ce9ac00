"""The paper's refinement by thresholds on a grid of τ_min, τ_max and λ, against passes, and against the paper's preset."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from bench.paper import plotting
from bench.paper.asking import FISHER, NAMES, Asking, accuracies, cogram, seeds
from bench.paper.storing import Answer
from bench.paper.tables import markdown, paired, spread

SETTINGS = ("skewed-same", "digits-mlp")
GRID = "digits-mlp"
"""Where the whole grid is run; elsewhere a run takes too long for 27 of them a seed."""
STEEPNESS = (1.0, 5.5, 30.0)
LOWS = (0.0, 0.01, 0.1)
HIGHS = (0.1, 1.0, None)
_PROTOTYPES: Mapping[str, Any] = {"kind": "examples", "per_class": 25}
LEVELS = ("layer", "neuron", "weight")
Cell = tuple[float, float, float | None]
"""λ, τ_min, τ_max."""
_PICKED: tuple[Cell, ...] = ((5.5, 0.01, 1.0), (5.5, 0.1, 0.1))
"""The preset's numbers, and a pair that leaves every layer to its neurons."""


def run(asking: Asking) -> str:
    """The paper's preset, thresholds and passes; where there is a grid its best, chosen on holdout and on test data."""
    rows = []
    for setting in SETTINGS:
        fisher = accuracies(asking.fused(setting, FISHER))
        passes = accuracies(asking.fused(setting, cogram("neuron", prototypes=dict(_PROTOTYPES))))
        found = {f"preset paper, {level}s": accuracies(asking.fused(setting, _preset(level))) for level in LEVELS}
        for cell in _PICKED:
            found[f"thresholds, {_words(cell)}"] = accuracies(asking.fused(setting, _stages(*cell)))
        if setting == GRID:
            grid = {cell: asking.fused(setting, _stages(*cell)) for cell in product(STEEPNESS, LOWS, HIGHS)}
            found["best of the grid on holdout, seed by seed"] = _chosen(grid)
            best = max(grid, key=lambda cell: statistics.fmean(accuracies(grid[cell])))
            found[f"best of the grid on test data, in the mean ({_words(best)})"] = accuracies(grid[best])
            _draw(asking, grid, setting)
        found["passes"] = passes
        for name, values in found.items():
            rows.append([NAMES[setting], name, spread(values), paired(values, fisher), paired(values, passes)])
    return markdown(["", "", "test accuracy, %", "− Fisher (worst)", "− passes (worst)"], rows)


def _stages(steepness: float, low: float, high: float | None) -> tuple[Any, ...]:
    return cogram(
        "neuron",
        refinement="thresholds",
        steepness=steepness,
        tau_min=low,
        tau_max=high,
        max_sweeps={"layer": 4, "neuron": 4, "weight": 1},
        prototypes=dict(_PROTOTYPES),
    )


def _preset(granularity: str) -> tuple[Any, ...]:
    return ("fisher", {"method": "cogram", "preset": "paper", "granularity": granularity})


def _chosen(grid: Mapping[Cell, Sequence[Answer]]) -> list[float]:
    """Test accuracy of the cell with the least calibrated loss on holdout, each seed its own."""
    return [min(answers, key=lambda answer: answer["holdout"])["test"] for answers in zip(*grid.values(), strict=True)]


def _words(cell: Cell) -> str:
    steepness, low, high = cell
    return f"λ {steepness:g}, τ {low:g} and {'∞' if high is None else f'{high:g}'}"


def _draw(asking: Asking, grid: Mapping[Cell, Sequence[Answer]], setting: str) -> None:
    """A square a pair of thresholds, a panel a λ."""
    means = {cell: statistics.fmean(accuracies(answers)) for cell, answers in grid.items()}
    low, high = min(means.values()), max(means.values())
    figure, axes = plotting.panels(len(STEEPNESS), 7.4, 2.6, shared=True)
    for panel, steepness in zip(axes, STEEPNESS, strict=True):
        values = [[means[steepness, tau_min, tau_max] for tau_max in HIGHS] for tau_min in LOWS]
        panel.imshow(values, cmap="cividis", vmin=low, vmax=max(high, low + 0.1), aspect="auto")
        panel.grid(visible=False)
        for row, column in product(range(len(LOWS)), range(len(HIGHS))):
            value = values[row][column]
            dark = value < (low + high) / 2
            panel.text(column, row, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black")
        panel.set_xticks(range(len(HIGHS)), ["∞" if tau is None else f"{tau:g}" for tau in HIGHS])
        panel.set_yticks(range(len(LOWS)), [f"{tau:g}" for tau in LOWS])
        panel.set_title(f"λ = {steepness:g}")
        panel.set_xlabel("τ_max, nats")
    axes[0].set_ylabel("τ_min, nats")
    figure.suptitle(f"test accuracy in %, {NAMES[setting]}; {seeds(asking)}", fontsize=10)
    plotting.save(figure, asking.figures, "thresholds")
