"""Runs a recipe: resolve, preflight, stages, guard, write. With ``modules`` the only one that knows all the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cogram_core.checkpoints.atomic import abandoned_folders, atomic_folder
from cogram_core.checkpoints.header import read_checkpoint_header
from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.choosing import settled
from cogram_core.determinism import repeatable, resolve_device, resolve_threads
from cogram_core.errors import DatasetError, InvalidInput, OutputError, Problem
from cogram_core.evaluation.datasets import Dataset, check_outputs, read_dataset
from cogram_core.evaluation.tokenizing import USUAL_LENGTH, Tokenizer
from cogram_core.journal import JOURNAL_NAME
from cogram_core.networks.network import Network
from cogram_core.networks.sequential import build
from cogram_core.networks.shells import Shell
from cogram_core.networks.tokens import Tokens
from cogram_core.observer import Observer, SilentObserver
from cogram_core.output import carry_over, output_dtypes, write_checkpoint
from cogram_core.overlap import shared_part
from cogram_core.preflight import NETWORK_FILE, Preflight, preflight_files
from cogram_core.recipe import Recipe, SequentialNetwork, TransformersNetwork
from cogram_core.recipe.layers import vocabulary
from cogram_core.recipe.reading import write_text
from cogram_core.resuming import Identity, data_digests, earlier_run, sha256_of
from cogram_core.run import Inputs, Outcome, Run, recipe_dtype
from cogram_core.sources import CheckpointStore, LoadedSource, source_digests
from cogram_core.statistics.fisher_cache import CACHE_BYTES, remembering
from cogram_core.stopping import stoppable

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
    cache: Path | None = None,
    cache_bytes: int = CACHE_BYTES,
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
        cache: a folder that keeps Fisher information for later runs; several processes may share it. By default
            none is kept. The result is the same with it and without.
        cache_bytes: how large that folder may grow; then the least recently used is given up.

    Raises:
        InvalidInput: listing everything that is wrong with the recipe or its inputs; nothing was written.
        OutputError: if the folder can't be written.
        FusionStopped: if the observer asked for it; nothing was written.
    """
    parsed = parse(recipe)
    heard = observer or SilentObserver()
    with ExitStack() as stack, stoppable(heard), remembering(cache, cache_bytes):
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
        found = preflight_files(recipe, paths)
        resolved = resolve(recipe, found)
        stack.enter_context(repeatable(resolve_threads(resolved.threads), torch.device(resolved.device)))
        loaded = _load(resolved, paths, found, stack)
        yield settled(resolved, loaded)


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


def resolve(recipe: Recipe, found: Preflight | None) -> Recipe:
    """The recipe with everything that was left open decided: device, threads, the network."""
    network = recipe.network
    if found is not None and found.layers is not None:
        network = SequentialNetwork(kind="sequential", layers=found.layers)
    elif found is not None and found.architecture is not None:
        network = TransformersNetwork(kind="transformers", architecture=found.architecture)
    return recipe.model_copy(
        update={
            "device": str(resolve_device(recipe.device)),
            "threads": resolve_threads(recipe.threads),
            "network": network,
        }
    )


def _load(recipe: Recipe, paths: Mapping[str, Path], found: Preflight, stack: ExitStack) -> Inputs:
    device, dtype = torch.device(recipe.device), recipe_dtype(recipe)
    shell = _shell(recipe, paths[recipe.sources[0].checkpoint], found)
    tokens = None if shell is None else shell.tokens
    tokenizer = None if tokens is None else _tokenizer(recipe, paths[recipe.sources[0].checkpoint], tokens)
    places = {
        reference.location: partial(read_dataset, paths[reference.value], dtype, reference.location, tokens, tokenizer)
        for reference in recipe.references()
        if reference.kind == "dataset"
    }
    datasets = {place: data.to(device) for place, data in all_datasets(places).items()}
    sources = []
    for place, source in enumerate(recipe.sources):
        reader = stack.enter_context(CheckpointReader.open(paths[source.checkpoint]))
        data = datasets.get(f"sources[{place}].data")
        sources.append(LoadedSource(source.name, source.weight, CheckpointStore(reader), dtype, device, data))
    network = None
    if shell is not None:
        shell.fill(sources[0].store.facts(), sources[0].store.read)
        network = Network(shell.module.to(device), next(iter(datasets.values())).inputs[:1], shell.parts)
        check_all_outputs(network, datasets)
    base = None
    if recipe.base is not None:
        reader = stack.enter_context(CheckpointReader.open(paths[recipe.base]))
        base = LoadedSource("base", 1.0, CheckpointStore(reader), dtype, device)
    evaluation, holdout, training = (datasets.get(f"data.{name}") for name in ("evaluation", "holdout", "training"))
    return Inputs(sources, network, evaluation, holdout, training, base)


def _tokenizer(recipe: Recipe, folder: Path, tokens: Tokens) -> Tokenizer:
    """The first source's, for texts no longer than the recipe says and the network has room for."""
    wanted = recipe.data.max_tokens or USUAL_LENGTH
    return Tokenizer(folder, wanted if tokens.longest is None else min(wanted, tokens.longest))


def check_all_outputs(network: Network, datasets: Mapping[str, Dataset]) -> None:
    """Checks that the network can be judged by the targets of every dataset.

    Raises:
        DatasetError: listing every dataset by which it can't.
    """
    problems = []
    for place, dataset in datasets.items():
        shape = tuple(network.logits(dataset.inputs[:1]).shape[1:])  # as wide as this dataset's texts
        problems += check_outputs(dataset, shape, place)
    if problems:
        raise DatasetError(problems)


def all_datasets(places: Mapping[str, Callable[[], Dataset]]) -> dict[str, Dataset]:
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


def _shell(recipe: Recipe, path: Path, found: Preflight) -> Shell | None:
    """The network that a recipe runs, without its numbers; None where it runs none."""
    dtype = recipe_dtype(recipe)
    if found.layers is not None:
        known = vocabulary(found.layers)
        return Shell.of(build(found.layers, dtype, torch.device("cpu")), None if known is None else Tokens(known))
    if found.architecture is None:
        return None
    from cogram_core.networks.transformers import build_shell  # its library takes seconds to import

    header = read_checkpoint_header(path)
    shapes = {name: spec.shape for name, spec in header.tensors.items() if spec.floating}
    return build_shell(path, found.architecture, shapes, dtype)


def _write(folder: Path, recipe: Recipe, inputs: Inputs, outcome: Outcome, run: Run, first: Path) -> dict[str, Any]:
    store = inputs.sources[0].store
    carry_over(first, folder, recipe)
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
