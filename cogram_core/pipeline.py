"""Runs a recipe: resolve, preflight, stages, guard, write. The only module that knows all the others."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cogram_core.checkpoints.atomic import abandoned_folders, atomic_folder
from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.determinism import repeatable, resolve_device, resolve_threads
from cogram_core.errors import DatasetError, InvalidInput, OutputError, Problem, RecipeError
from cogram_core.evaluation.datasets import Dataset, check_outputs, make_dataset, read_dataset
from cogram_core.evaluation.prototypes import PrototypeParams, decide
from cogram_core.journal import JOURNAL_NAME
from cogram_core.networks.network import Network
from cogram_core.networks.sequential import build
from cogram_core.networks.tokens import Tokens, tokens_of
from cogram_core.observer import Observer, SilentObserver
from cogram_core.output import carry_over, output_dtypes, write_checkpoint
from cogram_core.overlap import shared_part
from cogram_core.preflight import (
    NETWORK_FILE,
    criterion_problems,
    needs_network,
    payload_problems,
    preflight_files,
    prototype_problems,
)
from cogram_core.recipe import Recipe, SequentialNetwork
from cogram_core.recipe.layers import AnyLayer, LayerSpec, vocabulary
from cogram_core.recipe.reading import write_text
from cogram_core.resuming import Identity, data_digests, earlier_run, sha256_of
from cogram_core.run import Inputs, Outcome, Run, recipe_dtype
from cogram_core.sources import CheckpointStore, LoadedSource, MemoryStore, check_alike, source_digests
from cogram_core.stopping import stoppable
from cogram_core.trace import Trace

_SHARED = 0.5  # of the holdout examples at most: data with few different inputs has some in common by chance


@dataclass(frozen=True)
class Fusion:
    """A finished fusion: its output folder, its verdict and its report (the content of ``report.json``)."""

    output: Path
    verdict: dict[str, Any]
    report: dict[str, Any]


def fuse(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    output: str | Path,
    *,
    inputs: Mapping[str, Path] | None = None,
    observer: Observer | None = None,
    journal: Path | None = None,
    earlier: Sequence[Path] = (),
) -> Fusion:
    """Carries out a recipe and writes its output folder.

    A run that was killed leaves its journal. The next one with the same recipe, sources and data goes on from there and
    ends with the same bytes; it finds the journals of killed runs of the same output by itself.

    Args:
        recipe: a recipe, a parsed document, or the path of a YAML or JSON file.
        output: the folder to write; it appears complete by one rename, and must not exist before, or be empty.
        inputs: local paths by reference, for recipes whose references are names and not paths.
        observer: hears of the progress and may stop the run.
        journal: where decisions are written down as the run goes; the file stays. By default in the folder to come, where
            it ends with the run.
        earlier: further journals to go on from; those of another run are ignored, and the report says so.

    Raises:
        InvalidInput: listing everything that is wrong with the recipe or its inputs; nothing was written.
        OutputError: if the folder can't be written.
        FusionStopped: if the observer asked for it; nothing was written.
    """
    parsed = parse(recipe)
    heard = observer or SilentObserver()
    with ExitStack() as stack, stoppable(heard):
        left = stack.enter_context(abandoned_folders(Path(output)))
        folder = stack.enter_context(atomic_folder(Path(output)))
        stack.enter_context(writable(output))
        paths = paths_of(parsed, inputs or {})
        resolved, loaded = stack.enter_context(opened(parsed, paths))
        base = None if loaded.base is None else loaded.base.store.digest()
        identity = Identity(resolved, source_digests(loaded.sources), data_digests(resolved, paths), base)
        journals = [*earlier, *(path for path in (old / JOURNAL_NAME for old in left) if path.exists())]
        past = stack.enter_context(earlier_run(journals, identity))
        run = Run(resolved, loaded, folder, heard, identity=identity, earlier=past, journal=journal)
        stack.callback(run.close)
        outcome = run.carry_out()
        report = _write(folder, resolved, loaded, outcome, run, paths[resolved.sources[0].checkpoint])
    return Fusion(Path(output), outcome.verdict, report)


@contextmanager
def opened(recipe: Recipe, paths: Mapping[str, Path]) -> Iterator[tuple[Recipe, Inputs]]:
    """The resolved recipe and its inputs; inside the block torch computes as the recipe says.

    Raises:
        InvalidInput: listing everything that is wrong with the inputs.
    """
    with ExitStack() as stack:
        layers = preflight_files(recipe, paths).layers
        resolved = _resolve(recipe, layers)
        stack.enter_context(repeatable(resolve_threads(resolved.threads), torch.device(resolved.device)))
        loaded = _load(resolved, paths, layers, stack)
        yield _with_prototypes(resolved, loaded.evaluation), loaded


@contextmanager
def writable(output: str | Path) -> Iterator[None]:
    """Reading has errors of its own, so what the operating system still refuses inside the block is the output."""
    try:
        yield
    except OSError as error:
        message = (
            f"{output}: can't be written ({error.strerror or error}); check that its parent may be written and has room"
        )
        raise OutputError(message) from error


class FusedModule(NamedTuple):
    """What ``fuse_modules`` gives: the fused module and the trace of how it came about."""

    module: nn.Module
    trace: Trace


def fuse_modules(
    modules: Sequence[nn.Module],
    *,
    stages: Sequence[Mapping[str, Any] | str] | str,
    data: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    guard: str | Mapping[str, Any] | None = None,
    compute_dtype: str = "float32",
    seed: int = 0,
    device: str = "auto",
    threads: int | str = "auto",
    observer: Observer | None = None,
) -> FusedModule:
    """Fuses networks in memory; the same stages, guard and results as ``fuse``.

    Args:
        modules: two or more torch modules of one architecture. For inputs (N, ...) they give class scores (N, C), values
            (N, ...), or token scores (N, T, V), as the targets ask.
        stages: methods by name, or mappings with ``method`` and its parameters; a single name is a list of one.
        data: ``evaluation``, ``holdout``, ``training``: each a pair of inputs (N, ...) and targets: classes, integers
            (N,); values, floating (N, ...); or the labels of token ids (N, T), integers (N, T), at the places of the
            inputs and −100 where nothing is to be predicted. Integer inputs are given to the modules as they are where
            these run on them (token ids), else as numbers of ``compute_dtype`` (pixels).
        guard: as in a recipe, and so are ``compute_dtype``, ``seed``, ``device`` and ``threads``.
        observer: hears of the progress and may stop the run.

    Returns:
        A copy of the first module with the fused tensors, in evaluation mode, and the trace.

    Raises:
        InvalidInput: listing everything that is wrong with the arguments.
        FusionStopped: if the observer asked for it.
    """
    recipe = Recipe.from_document(
        {
            "guard": guard,
            "compute_dtype": compute_dtype,
            "seed": seed,
            "device": device,
            "threads": threads,
            "sources": [{"name": f"module-{i}", "checkpoint": f"memory:{i}"} for i in range(len(modules))],
            "data": {name: f"memory:{name}" for name in data or {}},
            "stages": [
                {"method": stage} if isinstance(stage, str) else dict(stage)
                for stage in ([stages] if isinstance(stages, str) else stages)
            ],
        }
    )
    resolved = _resolve(recipe, None)
    heard = observer or SilentObserver()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack, stoppable(heard):
        folder = Path(name)
        stack.enter_context(repeatable(resolve_threads(resolved.threads), torch.device(resolved.device)))
        inputs = _load_modules(resolved, modules, data or {})
        resolved = _with_prototypes(resolved, inputs.evaluation)
        run = Run(resolved, inputs, folder, heard)
        stack.callback(run.close)
        outcome = run.carry_out()
        fused = copy.deepcopy(modules[0]).eval()
        with torch.no_grad():
            for tensor_name, tensor in _untied(fused).items():
                if tensor.is_floating_point():
                    tensor.copy_(outcome.value(tensor_name))
        run.finish(outcome)
        return FusedModule(fused, Trace((folder / "trace.parquet").read_bytes()))


def _load_modules(recipe: Recipe, modules: Sequence[nn.Module], data: Mapping[str, tuple[Tensor, Tensor]]) -> Inputs:
    device, dtype = torch.device(recipe.device), recipe_dtype(recipe)
    sources = [
        LoadedSource(source.name, source.weight, MemoryStore(source.name, _untied(module)), dtype, device)
        for source, module in zip(recipe.sources, modules, strict=True)
    ]
    check_alike(sources)
    _check_sizes(recipe, sources[0])
    module = copy.deepcopy(modules[0]).to("cpu", dtype).eval() if needs_network(recipe) else None
    tokens = {name: None if module is None else tokens_of(module, pair[0]) for name, pair in data.items()}
    places = {
        f"data.{name}": partial(make_dataset, *pair, dtype, f"data.{name}", tokens[name]) for name, pair in data.items()
    }
    sets = {place.removeprefix("data."): dataset.to(device) for place, dataset in _all_datasets(places).items()}
    evaluation, holdout = sets.get("evaluation"), sets.get("holdout")
    network = None
    if module is not None:
        _check_fits(recipe, evaluation, holdout, tokens.get("evaluation"))
        network = Network(module.to(device), next(iter(sets.values())).inputs[:1])
        _check_outputs(network, {f"data.{name}": dataset for name, dataset in sets.items()})
    return Inputs(sources, network, evaluation, holdout, sets.get("training"))


def _untied(module: nn.Module) -> dict[str, Any]:
    """What a module's state holds, each tensor once, under the first of its names."""
    first: dict[int, str] = {}
    held = module.state_dict(keep_vars=True).items()
    return {name: value for name, value in held if first.setdefault(id(value), name) == name}


def _check_sizes(recipe: Recipe, first: LoadedSource) -> None:
    facts = first.store.facts()
    problems = [*payload_problems(recipe, {name: entry.shape for name, entry in facts.items() if entry.floating})]
    if problems:
        raise RecipeError(problems)


def _check_fits(recipe: Recipe, evaluation: Dataset | None, holdout: Dataset | None, tokens: Tokens | None) -> None:
    """What the preflight tells of files by their headers."""
    losses = [dataset.loss for dataset in (evaluation, holdout) if dataset is not None]
    problems = [*criterion_problems(recipe, losses)]
    if tokens is not None:
        problems += prototype_problems(recipe, medoids=tokens.vocabulary is not None)
    if problems:
        raise RecipeError(problems)


def _check_outputs(network: Network, datasets: Mapping[str, Dataset]) -> None:
    problems = [p for place, dataset in datasets.items() for p in check_outputs(dataset, network.output_shape, place)]
    if problems:
        raise DatasetError(problems)


def parse(recipe: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
    """The recipe in any of the forms that ``fuse`` takes."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return Recipe.from_document(recipe)
    return Recipe.load(recipe)


def paths_of(recipe: Recipe, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """The local path of each reference: as ``inputs`` has it, else the reference itself."""
    return {ref.value: Path(inputs.get(ref.value, ref.value)) for ref in recipe.references()}


def _resolve(recipe: Recipe, layers: tuple[AnyLayer, ...] | None) -> Recipe:
    """The recipe with everything that was left open decided: device, threads, layers."""
    network = recipe.network if layers is None else SequentialNetwork(kind="sequential", layers=layers)
    return recipe.model_copy(
        update={
            "device": str(resolve_device(recipe.device)),
            "threads": resolve_threads(recipe.threads),
            "network": network,
        }
    )


def _with_prototypes(recipe: Recipe, evaluation: Dataset | None) -> Recipe:
    """The recipe with the prototypes that the data asks for where it was left open."""
    if evaluation is None:
        return recipe
    stages = []
    for stage in recipe.stages:
        given = stage.parameters.get("prototypes")
        if isinstance(given, Mapping):
            decided = decide(PrototypeParams.model_validate(given), evaluation.holds_tokens)
            stage = stage.model_copy(update={"parameters": {**stage.parameters, "prototypes": decided.model_dump()}})
        stages.append(stage)
    return recipe.model_copy(update={"stages": tuple(stages)})


def _load(recipe: Recipe, paths: Mapping[str, Path], layers: tuple[AnyLayer, ...] | None, stack: ExitStack) -> Inputs:
    device, dtype = torch.device(recipe.device), recipe_dtype(recipe)

    known = None if layers is None else vocabulary(layers)
    tokens = None if known is None else Tokens(known)
    places = {
        reference.location: partial(read_dataset, paths[reference.value], dtype, reference.location, tokens)
        for reference in recipe.references()
        if reference.kind == "dataset"
    }
    datasets = {place: data.to(device) for place, data in _all_datasets(places).items()}
    sources = []
    for place, source in enumerate(recipe.sources):
        reader = stack.enter_context(CheckpointReader.open(paths[source.checkpoint]))
        data = datasets.get(f"sources[{place}].data")
        sources.append(LoadedSource(source.name, source.weight, CheckpointStore(reader), dtype, device, data))
    network = None
    if layers is not None:
        network = Network(_module(layers, sources[0]), next(iter(datasets.values())).inputs[:1])
        _check_outputs(network, datasets)
    base = None
    if recipe.base is not None:
        reader = stack.enter_context(CheckpointReader.open(paths[recipe.base]))
        base = LoadedSource("base", 1.0, CheckpointStore(reader), dtype, device)
    evaluation, holdout, training = (datasets.get(f"data.{name}") for name in ("evaluation", "holdout", "training"))
    return Inputs(sources, network, evaluation, holdout, training, base)


def _all_datasets(places: Mapping[str, Callable[[], Dataset]]) -> dict[str, Dataset]:
    """Reads every dataset, and tells the problems of all of them together."""
    datasets: dict[str, Dataset] = {}
    problems: list[Problem] = []
    for place, read in places.items():
        try:
            datasets[place] = read()
        except InvalidInput as error:
            problems += error.problems
    problems += _same_data(datasets)
    if problems:
        raise DatasetError(problems)
    return datasets


def _same_data(datasets: Mapping[str, Dataset]) -> list[Problem]:
    """The preflight compares names; here are the numbers, in whatever order."""
    holdout = datasets.get("data.holdout")
    if holdout is None:
        return []
    problems = []
    for place, dataset in datasets.items():
        if place != "data.holdout" and (part := shared_part(holdout, dataset)) > _SHARED:
            message = f"{part:.0%} of its examples are also in {place}; name examples that nothing else sees"
            problems.append(Problem("data.holdout", "recipe.same_data", message))
    return problems


def _module(layers: Sequence[LayerSpec], source: LoadedSource) -> nn.Module:
    module = build(layers, source.dtype, source.device)
    for name, tensor in module.state_dict().items():
        if name in source.store.facts():
            tensor.copy_(source.store.read(name))
    return module


def _write(folder: Path, recipe: Recipe, inputs: Inputs, outcome: Outcome, run: Run, first: Path) -> dict[str, Any]:
    store = inputs.sources[0].store
    carry_over(first, folder)
    write_checkpoint(folder, recipe, store, output_dtypes(recipe, store), outcome.value)
    if isinstance(recipe.network, SequentialNetwork):
        # What was run, so that the output can be a source again without another word on its network.
        network = recipe.network.model_dump_json(indent=2, exclude_defaults=True)
        (folder / NETWORK_FILE).write_text(network + "\n", encoding="utf-8")
    report = run.finish(outcome)
    document = write_text(recipe.to_document())
    (folder / "recipe.resolved.yaml").write_text(document, encoding="utf-8")
    (folder / "report.json").write_text(
        json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
    )
    own = folder / JOURNAL_NAME
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path != own]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    own.unlink(missing_ok=True)  # as late as that: until now a run that is killed can be gone on from
    return report
