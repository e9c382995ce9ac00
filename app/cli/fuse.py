"""``cogram fuse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from app.cli.interrupts import Interrupts
from app.cli.tables import candidates_table


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
    if verdict["candidates"]:
        console.print(candidates_table(verdict))
    console.print(verdict["summary"])
    typer.echo(str(output))
