"""``cogram inspect``, ``validate`` and ``methods``: commands that only look."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from app.cli.tables import candidates_table, layers_table
from cogram_core.preflight import preflight_files
from cogram_core.recipe import Recipe


def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint (folder or file), or a trace.parquet.")],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
) -> None:
    """Say what a checkpoint or a trace holds."""
    import cogram_core

    found = cogram_core.inspect(path)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif found["kind"] == "trace":
        _show_trace(found)
    else:
        _show_checkpoint(found)


def _show_trace(found: dict[str, Any]) -> None:
    console = Console()
    console.print(layers_table(found["layers"], [source["name"] for source in found["sources"]]))
    console.print(candidates_table(found["verdict"]))
    console.print(found["verdict"]["summary"])


def _show_checkpoint(found: dict[str, Any]) -> None:
    console = Console()
    table = Table("tensor", "dtype", "shape")
    for tensor in found["tensors"]:
        table.add_row(tensor["name"], tensor["dtype"], str(tensor["shape"]))
    console.print(table)
    console.print(f"{found['parameters']:,} parameters, {found['bytes']:,} bytes in {', '.join(found['files'])}")
    console.print(f"network: {found['network'] or found['network_obstacle']}")


def validate(recipe: Annotated[Path, typer.Argument(help="The recipe, YAML or JSON.")]) -> None:
    """Check a recipe and the headers of everything it names; lists all problems."""
    parsed = Recipe.load(recipe)
    result = preflight_files(parsed, {reference.value: Path(reference.value) for reference in parsed.references()})
    memory, disk = result.estimates.memory_bytes, result.estimates.disk_bytes
    typer.echo(f"{recipe} can be run; about {memory / 2**20:.0f} MiB of memory and {disk / 2**20:.0f} MiB of disk")


def methods() -> None:
    """List the methods that a stage may name."""
    catalogue = json.loads((files("cogram_core") / "methods" / "catalogue.json").read_text(encoding="utf-8"))
    table = Table("method", "kind", "what it does", "parameters")
    for entry in catalogue["methods"]:
        parameters = ", ".join(entry["parameters"].get("properties", {}))
        table.add_row(entry["name"], entry["kind"], entry.get("summary", ""), parameters)
    Console().print(table)
