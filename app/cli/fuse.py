"""``cogram fuse``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from app.cli.interrupts import Interrupts
from app.cli.tables import candidates_table


def fuse(
    recipe: Annotated[Path, typer.Argument(help="The recipe, YAML or JSON; paths in it count from its folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist.")],
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="COGRAM_CACHE_DIR",
            help="Keeps Fisher information for later fusions; by default cogram-fusion in $XDG_CACHE_HOME or ~/.cache.",
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither reads nor keeps what fusions share.")] = False,
) -> None:
    """Fuse checkpoints as a recipe says."""
    from app.cli.progress import ProgressBar
    from cogram_core.recipe import Recipe

    parsed = Recipe.load(recipe)  # before torch is loaded: a typing error is told at once
    import cogram_core

    with Interrupts() as interrupts, ProgressBar(interrupts) as bar:
        cache = None if no_cache else cache_dir or usual_cache()
        fusion = cogram_core.fuse(parsed, output, observer=bar, cache=cache)
    _show(fusion.verdict, output)


def usual_cache() -> Path:
    """By the XDG base directory specification, which has relative paths ignored."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "cogram-fusion"


def _show(verdict: dict[str, Any], output: Path) -> None:
    console = Console(stderr=True)
    if verdict["candidates"]:
        console.print(candidates_table(verdict))
    console.print(verdict["summary"])
    typer.echo(str(output))
