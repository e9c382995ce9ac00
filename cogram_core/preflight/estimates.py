"""What memory and disk a run will take, as far as headers tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cogram_core.checkpoints.header import DTYPES, CheckpointHeader
from cogram_core.preflight.data import DatasetFacts
from cogram_core.preflight.payloads import payload_bytes
from cogram_core.preflight.shapes import Passing, passings
from cogram_core.recipe.document import Recipe, Stage
from cogram_core.recipe.layers import (
    AnyLayer,
    Conv1d,
    Conv2d,
    Embedding,
    LayerSpec,
    Linear,
    Residual,
    Shape,
)
from cogram_core.recipe.methods import catalogue

_GRADIENTS = 2**24  # numbers that a batch of fisher's gives on its way
_DECOMPOSED = 112  # bytes an element of a square matrix whose singular vectors are looked for
# Reports beside the tensors, and what Python and torch take.
_FIXED_MEMORY = 400 * 2**20
_FIXED_DISK = 16 * 2**20
# As in the evaluation, which is out of reach here; tests hold them against it.
RECORD_BYTES = 2**30
BATCH = 1024
PER_CLASS = 16
# Of a row of the trace, journal and Parquet file together: what every row takes, and what a source or other candidate
# adds. Measured at weight level: 244 bytes with two sources, 291 with three and the average.
_ROW_BYTES, _CANDIDATE_BYTES = 200, 24
_LEVELS = ("layer", "neuron", "weight")
_WITH_NEURONS = (Linear, Conv1d, Conv2d, Embedding)


@dataclass(frozen=True)
class Estimates:
    """Bytes of memory and disk that a run is expected to take; meant for admission, right within a factor of about two.

    Where a stage of CoGraM decides how long it goes on, the most counts: rows of the trace for every sweep that it may
    take, and outputs that are kept between candidates up to their bound of 1 GiB.
    """

    memory_bytes: int
    disk_bytes: int


def estimate(
    recipe: Recipe,
    header: CheckpointHeader,
    datasets: Mapping[str, DatasetFacts],
    layers: tuple[AnyLayer, ...] | None,
) -> Estimates:
    """The network once in the compute dtype, float64 statistics of each source, the data; the output and the trace.

    Args:
        recipe: what is to be run, with all defaults.
        header: of the first source.
        datasets: facts by reference.
        layers: the network's; None where nothing runs forward.
    """
    element = 8 if recipe.compute_dtype == "float64" else 4
    methods = {stage.method for stage in recipe.stages}
    statistics = 8 * (len(recipe.sources) + 2) if "fisher" in methods else 16
    phases = sum(_phases(stage) for stage in recipe.stages)
    # Gradients, Adam's two means, and the network as it was before the phase; Fisher's statistics are gone by then.
    statistics = max(statistics, 4 * element if phases else 0)
    # The base, a change a source and two gradients.
    statistics = max(statistics, element * (len(recipe.sources) + 3) if "adamerging" in methods else 0)
    # One gradient and its square, or a batch of fisher's and its gradients.
    gradients = 2 * element * max(header.parameters, _GRADIENTS) if "fisher" in methods else 0
    used = {reference.value for reference in recipe.references() if reference.kind == "dataset"}
    data = sum(datasets[value].examples * math.prod(datasets[value].input_shape) for value in used) * element
    passes = max((_pass(datasets[value], layers or ()) for value in used), default=0) * element
    kept = max((_kept(stage, recipe, datasets, layers or (), element) for stage in recipe.stages), default=0)
    largest = max((spec.elements for spec in header.tensors.values()), default=0)
    payload = sum(payload_bytes(recipe, stage) * _times(stage) for stage in recipe.stages) * header.parameters
    rows = sum(_row_bytes(stage, len(recipe.sources), layers or ()) for stage in recipe.stages)
    out = header.nbytes if recipe.output.dtype == "source" else header.parameters * _itemsize(recipe.output.dtype)
    return Estimates(
        memory_bytes=_FIXED_MEMORY
        + header.parameters * (2 * element + statistics)
        + gradients
        + 2 * data
        + max(passes, kept)
        + (_DECOMPOSED if "opcm" in methods else 24) * largest,
        disk_bytes=_FIXED_DISK + out + 2 * payload + rows,
    )


def _pass(facts: DatasetFacts, layers: tuple[AnyLayer, ...]) -> int:
    """Numbers that a batch has in its widest layer, and twice the outputs of all examples, as far as can be told."""
    found = passings(layers, facts.input_shape) if layers else None
    if found is None:
        return 0
    seen, output = found
    widest = max((layer.arriving + layer.leaving for layer in seen), default=0)
    return min(BATCH, facts.examples) * widest + 2 * facts.examples * math.prod(output)


def _kept(
    stage: Stage, recipe: Recipe, datasets: Mapping[str, DatasetFacts], layers: tuple[AnyLayer, ...], element: int
) -> int:
    """Bytes that CoGraM keeps between candidates, where it keeps most."""
    if stage.method != "cogram" or recipe.data.evaluation is None:
        return 0
    facts = datasets[recipe.data.evaluation]
    sets = [(facts.input_shape, prototypes(stage.parameters["prototypes"], facts))]
    if stage.parameters["unit_guard"] and recipe.data.holdout is not None:
        holdout = datasets[recipe.data.holdout]
        sets.append((holdout.input_shape, holdout.examples))
    fine = stage.parameters["granularity"] != "layer"
    return sum(_kept_of(shape, examples, layers, fine, 8 if fine else element) for shape, examples in sets)


def _kept_of(shape: Shape, examples: int, layers: tuple[AnyLayer, ...], fine: bool, element: int) -> int:
    """The inputs in the stage's precision; and, at the layer where it is most, what comes before it and its own."""
    seen, _ = passings(layers, shape) or ([], ())
    most = max((_at(layer, examples, fine, element) for layer in seen), default=0)
    return examples * math.prod(shape) * element + most


def _at(layer: Passing, examples: int, fine: bool, element: int) -> int:
    """Bytes kept while a layer is visited.

    What comes before it is kept unless that is more than the bound. Where its neurons are tried, its inputs and outputs
    stay at hand in a second order, too, and so does what comes of the candidates: six times as much was measured.
    """
    before = layer.before * examples * element
    own = (layer.arriving + layer.leaving) * element
    tried = fine and isinstance(layer.layer, _WITH_NEURONS)
    return (before if before <= RECORD_BYTES else 0) + (6 * examples if tried else min(BATCH, examples)) * own


def prototypes(prototypes: Mapping[str, Any], facts: DatasetFacts) -> int:
    """How many examples decisions are taken on, at most."""
    kind, count = prototypes["kind"], prototypes["per_class"]
    if kind == "all" or (kind == "auto" and count is None):
        return facts.examples
    classes = 1
    if facts.loss == "cross_entropy" and facts.target_min is not None and facts.target_max is not None:
        classes = facts.target_max - facts.target_min + 1
    return min(facts.examples, classes * (count or PER_CLASS))


def _row_bytes(stage: Stage, sources: int, layers: tuple[AnyLayer, ...]) -> int:
    """What the rows take that CoGraM may write into the journal and the trace."""
    if stage.method != "cogram":
        return 0
    parameters = stage.parameters
    counts = units(layers)
    levels = _LEVELS[: _LEVELS.index(parameters["granularity"]) + 1]
    by_spread = parameters["refinement"] == "thresholds"  # then the layers' sweeps are those of all levels
    sweeps: dict[str, int] = parameters["max_sweeps"]
    rows = sum(counts[level] * sweeps["layer" if by_spread else level] for level in levels)
    if parameters["max_decisions"] is not None:
        rows = min(rows, int(parameters["max_decisions"]) + 1)
    return rows * (_ROW_BYTES + _CANDIDATE_BYTES * (sources + len(parameters["extra_candidates"])))


def units(layers: tuple[AnyLayer, ...]) -> dict[str, int]:
    """How many units of each level a network has."""
    found = dict.fromkeys(_LEVELS, 0)
    for layer in _flat(layers):
        if tensors := layer.tensors():
            found["layer"] += 1
            if isinstance(layer, _WITH_NEURONS):
                found["neuron"] += tensors["weight"][0]
                found["weight"] += sum(map(math.prod, tensors.values()))
    return found


def _flat(layers: tuple[AnyLayer, ...]) -> Iterator[LayerSpec]:
    """All layers, with those inside residuals in their place."""
    for layer in layers:
        if isinstance(layer, Residual):
            for branch in layer.branches().values():
                yield from _flat(branch)
        else:
            yield layer


def _times(stage: Stage) -> int:
    """How many rows a stage has for each tensor."""
    return _phases(stage) if catalogue()[stage.method].kind == "training" else 1


def _phases(stage: Stage) -> int:
    """How many times a stage writes down the whole network."""
    if catalogue()[stage.method].kind != "training":
        return 0
    return sum(stage.parameters[name] > 0 for name in ("kickoff_epochs", "epochs"))


def _itemsize(dtype: str) -> int:
    return DTYPES[{"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]].size
