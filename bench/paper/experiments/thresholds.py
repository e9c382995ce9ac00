"""The paper's refinement by thresholds on a grid of τ_min, τ_max and λ, against passes, and against the paper's preset."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from bench.paper import plotting
from bench.paper.asking import FISHER, NAMES, Asking, accuracies, cogram
from bench.paper.storing import Answer
from bench.paper.tables import markdown, paired, spread

SETTINGS = {"skewed-same": 5, "digits-mlp": 10}
"""And how many seeds, at most: the grid has 27 squares."""
STEEPNESS = (1.0, 5.5, 30.0)
LOWS = (0.0, 0.01, 0.1)
HIGHS = (0.1, 1.0, None)
_PROTOTYPES: Mapping[str, Any] = {"kind": "examples", "per_class": 25}
Cell = tuple[float, float, float | None]
"""λ, τ_min, τ_max."""


def run(asking: Asking) -> str:
    """Grids in figures; in the table the best of each on holdout and on test data, passes and the preset."""
    rows, grids = [], {}
    for setting, seeds in SETTINGS.items():
        few = asking.first(seeds)
        fisher = accuracies(few.fused(setting, FISHER))
        grid = grids[setting] = {cell: few.fused(setting, _stages(*cell)) for cell in product(STEEPNESS, LOWS, HIGHS)}
        best = max(grid, key=lambda cell: statistics.fmean(accuracies(grid[cell])))
        found = {
            "paper's preset, layers": accuracies(few.fused(setting, _preset("layer"))),
            "paper's preset, down to neurons": accuracies(few.fused(setting, _preset("neuron"))),
            "paper's preset, down to weights": accuracies(few.fused(setting, _preset("weight"))),
            "τ 0.01 and 1, λ 5.5 (rollback, backtracking, sweeps)": accuracies(grid[5.5, 0.01, 1.0]),
            "best of the grid on holdout, seed by seed": _chosen(grid),
            f"best of the grid on test data in the mean ({_words(best)})": accuracies(grid[best]),
            "passes (default)": accuracies(few.fused(setting, cogram("neuron", prototypes=dict(_PROTOTYPES)))),
        }
        passes = found["passes (default)"]
        rows += [
            [
                f"{NAMES[setting]} ({len(few.seeds)} seeds)",
                name,
                spread(values),
                paired(values, fisher),
                paired(values, passes),
            ]
            for name, values in found.items()
        ]
        _draw(few, grid, setting)
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
    figure.suptitle(f"test accuracy in %, mean of {len(asking.seeds)} seeds: {NAMES[setting]}", fontsize=10)
    plotting.save(figure, asking.figures, f"thresholds-{setting}")
