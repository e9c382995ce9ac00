from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from cogram_core.preflight import Estimates, preflight, read_dataset_facts, summarise_checkpoint
from cogram_core.recipe import Recipe
from tests.core.factories import initialise, points, recipe_document

FUSE = """
import json, resource, sys
import cogram_core
cogram_core.fuse(json.loads(sys.argv[1]), sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


TRAINING = points(2, 32, (64,), 10)


def network(seed: int) -> nn.Sequential:
    """About 21 MB."""
    built = nn.Sequential(nn.Linear(64, 2200), nn.ReLU(), nn.Linear(2200, 2200), nn.ReLU(), nn.Linear(2200, 10))
    initialise(built, seed, 0.02)
    return built


def estimate(document: dict[str, Any]) -> Estimates:
    recipe = Recipe.from_document(document)
    references = recipe.references()
    result = preflight(
        recipe,
        {ref.value: summarise_checkpoint(Path(ref.value)) for ref in references if ref.kind == "checkpoint"},
        {ref.value: read_dataset_facts(Path(ref.value)) for ref in references if ref.kind == "dataset"},
    )
    assert result.problems == ()
    return result.estimates


@pytest.mark.parametrize(
    ("stages", "options"),
    [
        (["linear"], {"guard": "off"}),
        ([{"method": "fisher", "examples": 2}, {"method": "cogram", "max_sweeps": {"layer": 1}}], {}),
        (["linear", {"method": "finetune", "kickoff_epochs": 1, "epochs": 1}], {"guard": "off", "training": TRAINING}),
    ],
)
def test_memory_and_disk_are_estimated_within_a_factor_of_three(
    tmp_path: Path, stages: list[Any], options: dict[str, Any]
) -> None:
    if not options:
        options = {name: points(place, 32, (64,), 10) for place, name in enumerate(("evaluation", "holdout"))}
    document = recipe_document(tmp_path / "inputs", [network(0), network(1)], stages, **options)
    expected = estimate(document)
    run = subprocess.run(
        [sys.executable, "-c", FUSE, json.dumps(document), str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    memory = int(run.stdout)
    disk = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert memory / 3 < expected.memory_bytes < memory * 3
    assert disk / 3 < expected.disk_bytes < disk * 3
