"""Fuses networks in memory: the same stages, guard and results as a fusion of checkpoints on disk."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cogram_core.choosing import settled
from cogram_core.determinism import repeatable, resolve_threads
from cogram_core.errors import Problem, RecipeError
from cogram_core.evaluation.datasets import Dataset, make_dataset
from cogram_core.networks.network import Network
from cogram_core.networks.tokens import Tokens, tokens_of
from cogram_core.observer import Observer, SilentObserver
from cogram_core.pipeline import all_datasets, check_all_outputs, resolve
from cogram_core.preflight import criterion_problems, needs_network, payload_problems, prototype_problems
from cogram_core.recipe import Recipe
from cogram_core.run import Inputs, Run, recipe_dtype
from cogram_core.sources import LoadedSource, MemoryStore, check_alike
from cogram_core.stopping import stoppable
from cogram_core.trace import Trace


class FusedModule(NamedTuple):
    """What ``fuse_modules`` gives: the fused module and the trace of how it came about."""

    module: nn.Module
    trace: Trace


def fuse_modules(
    modules: Sequence[nn.Module],
    *,
    stages: Sequence[Mapping[str, Any] | str] | str,
    base: nn.Module | None = None,
    data: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    source_data: Sequence[tuple[Tensor, Tensor] | None] = (),
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
        base: the module that all others were trained from, for methods that take differences to it.
        data: ``evaluation``, ``holdout``, ``training``: each a pair of inputs (N, ...) and targets: classes, integers
            (N,); values, floating (N, ...); or the labels of token ids (N, T), integers (N, T), at the places of the
            inputs and −100 where nothing is to be predicted. Integer inputs are given to the modules as they are where
            these run on them (token ids), else as numbers of ``compute_dtype`` (pixels).
        source_data: each module's own data, for methods that take statistics, as pairs like those of ``data``; None, and
            nothing at all, stand for the evaluation data.
        guard: as in a recipe, and so are ``compute_dtype``, ``seed``, ``device`` and ``threads``.
        observer: hears of the progress and may stop the run.

    Returns:
        A copy of the first module with the fused tensors, in evaluation mode, and the trace.

    Raises:
        InvalidInput: listing everything that is wrong with the arguments.
        FusionStopped: if the observer asked for it.
    """
    own = {i: pair for i, pair in enumerate(source_data) if pair is not None}
    _check_owners(own, len(modules))
    recipe = Recipe.from_document(
        {
            "guard": guard,
            "compute_dtype": compute_dtype,
            "seed": seed,
            "device": device,
            "threads": threads,
            "sources": [
                {"name": f"module-{i}", "checkpoint": f"memory:{i}", **({"data": f"memory:{i}"} if i in own else {})}
                for i in range(len(modules))
            ],
            "base": None if base is None else "memory:base",
            "data": {name: f"memory:{name}" for name in data or {}},
            "stages": [
                {"method": stage} if isinstance(stage, str) else dict(stage)
                for stage in ([stages] if isinstance(stages, str) else stages)
            ],
        }
    )
    resolved = resolve(recipe, None)
    heard = observer or SilentObserver()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack, stoppable(heard):
        folder = Path(name)
        stack.enter_context(repeatable(resolve_threads(resolved.threads), torch.device(resolved.device)))
        places = {f"data.{name}": pair for name, pair in (data or {}).items()}
        places |= {f"sources[{i}].data": pair for i, pair in own.items()}
        inputs = _load_modules(resolved, modules, base, places)
        resolved, inputs = settled(resolved, inputs)
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


def _load_modules(
    recipe: Recipe, modules: Sequence[nn.Module], base: nn.Module | None, data: Mapping[str, tuple[Tensor, Tensor]]
) -> Inputs:
    device, dtype = torch.device(recipe.device), recipe_dtype(recipe)

    def loaded(name: str, weight: float, module: nn.Module) -> LoadedSource:
        return LoadedSource(name, weight, MemoryStore(name, _untied(module)), dtype, device)

    named = zip(recipe.sources, modules, strict=True)
    sources = [loaded(source.name, source.weight, module) for source, module in named]
    origin = None if base is None else loaded("base", 1.0, base)
    check_alike(sources if origin is None else [*sources, origin])
    _check_sizes(recipe, sources[0])
    module = copy.deepcopy(modules[0]).to("cpu", dtype).eval() if needs_network(recipe) else None
    tokens = {name: None if module is None else tokens_of(module, pair[0]) for name, pair in data.items()}
    places = {place: partial(make_dataset, *pair, dtype, place, tokens[place]) for place, pair in data.items()}
    sets = {place: dataset.to(device) for place, dataset in all_datasets(places).items()}
    sources = [replace(source, data=sets.get(f"sources[{i}].data")) for i, source in enumerate(sources)]
    evaluation, holdout, training = (sets.get(f"data.{name}") for name in ("evaluation", "holdout", "training"))
    network = None
    if module is not None:
        _check_fits(recipe, evaluation, holdout, tokens.get("data.evaluation"))
        network = Network(module.to(device), next(iter(sets.values())).inputs[:1])
        check_all_outputs(network, sets)
    return Inputs(sources, network, evaluation, holdout, training, origin)


def _check_owners(own: Mapping[int, object], count: int) -> None:
    beyond = [i for i in own if i >= count]
    if beyond:
        message = f"has data for module {beyond[0]}, and there are {count}; give one pair, or None, a module"
        raise RecipeError([Problem("source_data", "recipe.too_much_data", message)])


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
