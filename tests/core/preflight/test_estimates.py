from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import cogram_core
from cogram_core.evaluation import evaluator, fast, prototypes
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.prototypes import PrototypeParams, make_prototypes
from cogram_core.preflight import (
    DatasetFacts,
    Estimates,
    estimates,
    preflight,
    read_dataset_facts,
    summarise_checkpoint,
)
from cogram_core.recipe import Recipe
from cogram_core.trace import Trace
from tests.core.factories import conv_net, initialise, mlp, points, recipe_document, save_checkpoint, specialists

FUSE = """
import json, sys
import cogram_core
from tests.core.peaks import peak_kibibytes
cogram_core.fuse(json.loads(sys.argv[1]), sys.argv[2])
print(peak_kibibytes() * 1024)
"""


TRAINING = points(2, 32, (64,), 10)
FIXED_DISK = 16 * 2**20


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


def convolutions(seed: int) -> nn.Sequential:
    """Small tensors and large outputs: 16,384 numbers a layer and example."""
    built = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 32 * 32, 10),
    )
    initialise(built, seed, 0.05)
    return built


def drawn(count: int, *shape: int) -> dict[str, Any]:
    return {name: points(place, count, shape, 10) for place, name in enumerate(("evaluation", "holdout"))}


# Ends a few neurons into the last convolution, where most is kept.
NEURONS = {"method": "cogram", "max_sweeps": {"layer": 0}, "max_decisions": 12, "unit_guard": True}


@pytest.mark.parametrize(
    ("make", "stages", "options"),
    [
        (network, ["linear"], {"guard": "off"}),
        (
            network,
            [{"method": "fisher", "examples": 2}, {"method": "cogram", "max_sweeps": {"layer": 1, "neuron": 1}}],
            drawn(32, 64),
        ),
        (
            network,
            ["linear", {"method": "finetune", "kickoff_epochs": 1, "epochs": 1}],
            {"guard": "off", "training": TRAINING},
        ),
        (convolutions, ["linear", NEURONS], drawn(200, 3, 32, 32)),
        (network, [{"method": "adamerging", "steps": 2}, "repair"], drawn(32, 64)),
    ],
)
def test_memory_and_disk_are_estimated_within_a_factor_of_two(
    tmp_path: Path, make: Callable[[int], nn.Sequential], stages: list[Any], options: dict[str, Any]
) -> None:
    if isinstance(stages[0], dict) and stages[0]["method"] == "adamerging":
        options = {**options, "base": str(save_checkpoint(tmp_path / "base", make(2)))}
    document = recipe_document(tmp_path / "inputs", [make(0), make(1)], stages, **options)
    expected = estimate(document)
    run = subprocess.run(
        [sys.executable, "-c", FUSE, json.dumps(document), str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    memory = int(run.stdout)
    disk = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert memory / 2 < expected.memory_bytes < memory * 2
    assert disk / 3 < expected.disk_bytes < disk * 3 + FIXED_DISK


def test_bounds_and_numbers_are_those_of_the_evaluation() -> None:
    assert estimates.RECORD_BYTES == fast.RECORD_BYTES
    assert estimates.BATCH == evaluator.BATCH
    assert estimates.PER_CLASS == prototypes._PER_CLASS


def changed(document: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    *others, last = document["stages"]
    return document | {"stages": [*others, last | parameters]}


ONCE = {"layer": 1, "neuron": 1, "weight": 1}


@pytest.mark.parametrize("granularity", ["layer", "neuron", "weight"])
@pytest.mark.parametrize("extra", [[], ["average"]])
def test_rows_of_the_trace_take_the_disk_that_is_estimated(tmp_path: Path, granularity: str, extra: list[str]) -> None:
    stage = {"method": "cogram", "granularity": granularity, "extra_candidates": extra, "max_sweeps": ONCE}
    modules = [mlp(seed, (16, 24, 24, 4)) for seed in range(2 + len(extra))]
    data = {name: points(place, 20, (16,)) for place, name in enumerate(("evaluation", "holdout"))}
    document = recipe_document(tmp_path / "inputs", modules, ["linear", stage], guard="off", **data)
    none = estimate(changed(document, max_sweeps=dict.fromkeys(ONCE, 0)))
    expected = estimate(document).disk_bytes - none.disk_bytes
    cogram_core.fuse(document, tmp_path / "out", journal=tmp_path / "journal")
    trace = tmp_path / "out" / "trace.parquet"
    rows = sum(decision.method == "cogram" for decision in Trace(trace).decisions())
    assert expected == rows * (200 + 24 * len(modules) + 24 * len(extra))
    if granularity == "weight":  # fewer rows take less than the file without any
        found = (tmp_path / "journal").stat().st_size + trace.stat().st_size
        assert found / 1.5 < expected < found * 1.5
    assert estimate(changed(document, max_decisions=1)).disk_bytes - none.disk_bytes == 2 * expected // rows
    assert estimate(changed(document, max_sweeps=ONCE | {granularity: 2})).disk_bytes > none.disk_bytes + expected


def test_by_thresholds_the_layers_sweeps_are_those_of_every_level(tmp_path: Path) -> None:
    stage = {"method": "cogram", "granularity": "weight", "refinement": "thresholds", "max_sweeps": {"layer": 3}}
    data = {name: points(place, 20) for place, name in enumerate(("evaluation", "holdout"))}
    document = recipe_document(tmp_path / "inputs", specialists(0), ["linear", stage], **data)
    passes = {"refinement": "passes", "max_sweeps": dict.fromkeys(ONCE, 3)}
    assert estimate(document) == estimate(changed(document, **passes))


def memory(tmp_path: Path, examples: int, **parameters: Any) -> int:
    """The estimate for a convolutional network on so many examples that nobody has to write them."""
    if not (tmp_path / "inputs").exists():
        recipe_document(tmp_path / "inputs", specialists(0, build=conv_net), ["linear"], guard="off")
    document = {
        "sources": [
            {"name": f"module-{name}", "checkpoint": str(tmp_path / "inputs" / f"source-{name}")} for name in "01"
        ],
        "data": {"evaluation": "evaluation", "holdout": "holdout"},
        "stages": [{"method": "linear"}, {"method": "cogram", **parameters}],
    }
    recipe = Recipe.from_document(document)
    summaries = {source.checkpoint: summarise_checkpoint(Path(source.checkpoint)) for source in recipe.sources}
    facts = DatasetFacts(examples, (1, 4, 4), 0, 2)
    found = preflight(recipe, summaries, {"evaluation": facts, "holdout": replace(facts, examples=1)})
    assert found.problems == ()
    return found.estimates.memory_bytes


def test_outputs_that_are_kept_count_up_to_their_bound(tmp_path: Path) -> None:
    # Before the last layer stand 4 × 48 numbers, before the normalisation 48, each of 8 bytes; inputs have 16.
    fits, over = 2**30 // (4 * 48 * 8), 2**30 // (4 * 48 * 8) + 1
    rising = memory(tmp_path, fits) - memory(tmp_path, fits - 1)
    assert memory(tmp_path, over) < memory(tmp_path, fits) - 2**28
    assert rising == (4 * 48 + 16 + 6 * (48 + 3)) * 8 + 2 * 16 * 4


@pytest.mark.parametrize("kind", ["auto", "geometric", "arithmetic", "kmeans", "medoid", "examples", "all"])
@pytest.mark.parametrize("per_class", [None, 1, 5, 4096])
def test_as_many_examples_count_as_decisions_are_taken_on(kind: str, per_class: int | None) -> None:
    inputs, targets = points(0, 200)
    made = make_prototypes(Dataset(inputs, targets), PrototypeParams(kind=kind, per_class=per_class), 0, 0)
    facts = DatasetFacts(200, (6,), 0, 3)
    told = estimates.prototypes({"kind": kind, "per_class": per_class}, facts)
    assert len(made) <= told <= max(len(made), 4 * (per_class or 16))
    values = DatasetFacts(200, (6,), None, None, "mean_squared_error", (2,))
    made = make_prototypes(Dataset(inputs, torch.zeros(200, 2)), PrototypeParams(kind=kind, per_class=per_class), 0, 0)
    assert len(made) <= estimates.prototypes({"kind": kind, "per_class": per_class}, values) <= 200
