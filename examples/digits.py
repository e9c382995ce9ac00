"""The demo: two clinics' classifiers become one, through the real service.

Starts `cogram serve` in a temporary folder, trains two networks on label-skewed halves of scikit-learn's digits, uploads
them over HTTP, posts recipes, follows the jobs live, downloads the results, and scores them on test data that the service
never saw. Ends with exit code 0 only if the fused network was fetched and evaluated. `python -m examples.digits`
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

from app.client import Client
from examples.clinics import accuracy, mlp, save, train_clinics

OUTPUT = Path("out/demo")
FISHER = [{"method": "fisher"}]
COGRAM = [*FISHER, {"method": "cogram", "granularity": "neuron"}]
_WAIT_SECONDS = 60.0

console = Console()


@contextmanager
def service() -> Iterator[str]:
    """`cogram serve` on a free port with a temporary data folder; ends, with all its processes, with the block."""
    with tempfile.TemporaryDirectory(prefix="cogram-demo-") as folder:
        cogram = Path(sys.executable).with_name("cogram")
        log = Path(folder) / "serve.log"
        with log.open("wb") as errors:
            command = [cogram, "serve", "--data-dir", f"{folder}/data", "--port", "0"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
            try:
                assert process.stdout is not None
                yield _address(process.stdout, log)
            finally:
                process.terminate()
                process.wait(_WAIT_SECONDS)


def _address(lines: Any, log: Path) -> str:
    for line in lines:
        if found := re.search(r"https?://\S+", line):
            return found[0].rstrip("/.")
    raise SystemExit(f"the service ended before it was ready:\n{log.read_text()}")


def recipe(stages: list[dict[str, Any]], guard: str) -> dict[str, Any]:
    """Fuses the two clinics."""
    sources = [{"name": name, "checkpoint": name} for name in ("clinic-a", "clinic-b")]
    data = {"evaluation": "evaluation", "holdout": "holdout"}
    return {"sources": sources, "data": data, "stages": stages, "guard": guard}


def run(client: Client, title: str, document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Posts a recipe, shows its progress, fetches every file of the result."""
    fusion_id = client.submit(document)["id"]
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), console=console
    ) as bar:
        task = bar.add_task(f"{title}: queued", total=None)
        for event in client.follow(fusion_id):
            if event.type == "stage_started":
                stage = f"stage {event.data['stage'] + 1} of {event.data['stages']}, {event.data['method']}"
                bar.update(task, description=f"{title}: {stage}")
            elif event.type == "progress":
                bar.update(task, completed=event.data["done"], total=event.data["total"])
        fusion = client.fusion(fusion_id)
        bar.update(task, description=f"{title}: {fusion['state']}", completed=1, total=1)
    if fusion["state"] != "succeeded":
        raise SystemExit(f"{fusion_id} {fusion['state']}: {fusion['error']}")
    client.download(fusion_id, folder)
    _check_digests(folder)
    return fusion


def _check_digests(folder: Path) -> None:
    """What was fetched is what the run wrote."""
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise SystemExit(f"{folder / name} is damaged")


def score(state: Mapping[str, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Test accuracy of a checkpoint, by plain torch."""
    network = mlp()
    network.load_state_dict(dict(state))
    return accuracy(network, test)


def main() -> None:
    """Runs the demo and prints its table."""
    torch.set_num_threads(1)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    console.print("Training two clinics' classifiers on skewed halves of scikit-learn's digits …")
    clinics = train_clinics(seed=0)
    save(clinics, OUTPUT)
    with service() as address, Client(address) as client:
        console.print(f"The service runs at {address}")
        for name in ("clinic-a", "clinic-b"):
            client.upload_checkpoint(name, OUTPUT / name)
        for name in ("evaluation", "holdout"):
            client.upload_dataset(name, OUTPUT / f"{name}.safetensors")
        run(client, "Fisher", recipe(FISHER, "report"), OUTPUT / "fisher")
        fused = run(client, "Fisher + CoGraM", recipe(COGRAM, "best_on_holdout"), OUTPUT / "fused")
    states = {
        "clinic A (mostly 0–4)": load_file(OUTPUT / "clinic-a" / "model.safetensors"),
        "clinic B (mostly 5–9)": load_file(OUTPUT / "clinic-b" / "model.safetensors"),
    }
    one, two = states.values()
    states |= {
        "plain average": {name: (one[name] + two[name]) / 2 for name in one},
        "Fisher": load_file(OUTPUT / "fisher" / "model.safetensors"),
        "CoGraM": load_file(OUTPUT / "fused" / "model.safetensors"),
    }
    table = Table("network", "test accuracy")
    for name, state in states.items():
        table.add_row(name, f"{100 * score(state, clinics.test):.1f} %")
    console.print(table)
    report = json.loads((OUTPUT / "fused" / "report.json").read_text())
    layers = [layer for layer in report["layers"] if layer["stage"] == len(COGRAM) - 1]
    accepted, undone = (sum(layer[key] for layer in layers) for key in ("merged", "rolled_back"))
    console.print(f"{accepted} decisions accepted, {undone} rolled back. {fused['verdict']['summary']}")
    console.print(f"Files: {OUTPUT}/fused/ (model.safetensors, trace.parquet, report.json, …)")


if __name__ == "__main__":
    main()
