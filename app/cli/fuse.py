"""``cogram fuse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.cli.interrupts import Interrupts


def fuse(
    recipe: Annotated[Path, typer.Argument(help="The recipe, YAML or JSON; paths in it count from its folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist.")],
) -> None:
    """Fuse checkpoints as a recipe says."""
    from app.cli.progress import ProgressBar
    from cogram_core.recipe import Recipe

    parsed = Recipe.load(recipe)  # before torch is loaded: a typing error is told at once
    import cogram_core

    with Interrupts() as interrupts, ProgressBar(interrupts) as bar:
        fusion = cogram_core.fuse(parsed, output, observer=bar)
    _show(fusion.verdict, output)


def _show(verdict: dict[str, Any], output: Path) -> None:
    console = Console(stderr=True)
    candidates = verdict.get("candidates") or []
    if candidates:
        columns = [key for key, value in candidates[0].items() if isinstance(value, str | int | float | bool)]
        table = Table(*columns)
        for candidate in candidates:
            table.add_row(*(_short(candidate.get(column)) for column in columns))
        console.print(table)
    typer.echo(str(output))


def _short(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
