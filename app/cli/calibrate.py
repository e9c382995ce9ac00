"""``cogram calibrate``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from app.cli.interrupts import Interrupts

if TYPE_CHECKING:
    from cogram_core.calibration import Calibration

_SHOWN = 15
_CAPTION = (
    "own: the recipe's own setting. Evaluation figures chose the best trial and flatter it; holdout figures had no part "
    "in it."
)


def calibrate(
    recipe: Annotated[Path, typer.Argument(help="The recipe, YAML or JSON; paths in it count from its folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist.")],
    trials: Annotated[int, typer.Option("--trials", min=1, help="Settings to try, at most.")] = 40,
    stage: Annotated[
        int | None,
        typer.Option("--stage", min=0, help="Which cogram stage, counted from 0; needed if there are several."),
    ] = None,
) -> None:
    """Search a recipe's CoGraM parameters (λ, κ, τ), and write the table and the best recipe."""
    from app.cli.progress import ProgressBar
    from cogram_core.recipe import Recipe

    parsed = Recipe.load(recipe)  # before torch is loaded: a typing error is told at once
    import cogram_core

    with Interrupts() as interrupts, ProgressBar(interrupts) as bar:
        found = cogram_core.calibrate(parsed, output, trials=trials, stage=stage, observer=bar)
    _show(found, output)


def _show(found: Calibration, output: Path) -> None:
    console = Console(stderr=True)
    document = found.to_document()
    console.print(_trials_table(document["trials"], document["best"], found.criterion))
    console.print(_CAPTION)
    console.print(found.summary)
    typer.echo(str(output))


def _trials_table(trials: Sequence[Mapping[str, Any]], best: int, criterion: str) -> Table:
    """The best trials by the criterion on evaluation data, and the recipe's own setting wherever it stands."""
    words = criterion.replace("_", " ")
    headers = (
        "λ layer, neuron, weight",
        "κ",
        "τ",
        "evaluation",
        "holdout",
        "holdout accuracy",
    )
    table = Table(
        Column("trial", justify="right"),
        # No lines between the columns, and no counts of decisions: all has to fit into 80 characters.
        *(Column(header, min_width=max(map(len, header.split()))) for header in headers),
        title=f"{words} on evaluation and holdout data",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    sign = -1 if criterion == "accuracy" else 1
    ranked = sorted(trials, key=lambda trial: _or_infinite(trial["evaluation"][criterion], sign))
    for place, trial in enumerate(ranked):
        if place < _SHOWN or trial["number"] in (0, best):
            table.add_row(*_cells(trial, best, criterion))
    return table


def _cells(trial: Mapping[str, Any], best: int, criterion: str) -> list[str]:
    given, evaluation, holdout = trial["parameters"], trial["evaluation"], trial["holdout"]
    high = "∞" if given["tau_max"] is None else f"{given['tau_max']:g}"
    thresholds = "auto" if given["tau"] == "auto" else f"{given['tau_min']:g} to {high}"
    marks = [*(["own"] if trial["number"] == 0 else []), *(["best"] if trial["number"] == best else [])]
    return [
        " ".join([*marks, str(trial["number"])]),
        ", ".join(f"{given['steepness'][level]:g}" for level in ("layer", "neuron", "weight")),
        f"{given['competence']:g}",
        thresholds if given["refinement"] == "thresholds" else "",
        _shown(evaluation[criterion]),
        _shown(holdout[criterion]),
        _shown(holdout["accuracy"]),
    ]


def _or_infinite(value: float | None, sign: int) -> float:
    return math.inf if value is None else sign * value


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
