"""``cogram replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def replay(
    trace: Annotated[Path, typer.Argument(help="trace.parquet of a run.")],
    sources: Annotated[
        list[Path], typer.Option("--sources", "-s", help="A source checkpoint; once a source, in the recipe's order.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must not exist.")],
    base: Annotated[
        Path | None, typer.Option("--base", "-b", help="The base, where the recipe has one.", show_default=False)
    ] = None,
) -> None:
    """Write a fused checkpoint again, bit for bit, from its sources, their base where there is one, and its trace."""
    import cogram_core

    cogram_core.replay(sources, trace, output, base=base)
    typer.echo(str(output))
