"""``cogram inspect``, ``validate`` and ``methods``: commands that only look."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cogram_core.errors import InvalidInput, Problem
from cogram_core.preflight import CheckpointSummary, DatasetFacts, preflight, read_dataset_facts, summarise_checkpoint
from cogram_core.recipe import Recipe, Reference


def inspect(path: Annotated[Path, typer.Argument(help="A checkpoint (folder or file), or a trace.parquet.")]) -> None:
    """Say what a checkpoint or a trace holds, as JSON."""
    import cogram_core

    typer.echo(json.dumps(cogram_core.inspect(path), indent=2))


def validate(recipe: Annotated[Path, typer.Argument(help="The recipe, YAML or JSON.")]) -> None:
    """Check a recipe and the headers of everything it names; lists all problems."""
    parsed = Recipe.load(recipe)
    checkpoints: dict[str, CheckpointSummary] = {}
    datasets: dict[str, DatasetFacts] = {}
    problems: list[Problem] = []
    for reference in parsed.references():
        try:
            _read(reference, checkpoints, datasets)
        except InvalidInput as error:
            problems += [Problem(f"{reference.location}: {p.location}", p.code, p.message) for p in error.problems]
    if problems:
        raise InvalidInput(problems)
    result = preflight(parsed, checkpoints, datasets)
    if result.problems:
        raise InvalidInput(result.problems)
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


def _read(reference: Reference, checkpoints: dict[str, CheckpointSummary], datasets: dict[str, DatasetFacts]) -> None:
    if reference.kind == "checkpoint" and reference.value not in checkpoints:
        checkpoints[reference.value] = summarise_checkpoint(Path(reference.value))
    elif reference.kind == "dataset" and reference.value not in datasets:
        datasets[reference.value] = read_dataset_facts(Path(reference.value))
