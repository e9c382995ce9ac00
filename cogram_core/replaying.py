"""Gives a fused checkpoint again from its sources and its trace: no data, no forward pass, the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from cogram_core.checkpoints.atomic import abandoned_folders, atomic_folder
from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.determinism import repeatable, resolve_threads
from cogram_core.errors import CheckpointError, InvalidInput, Problem, ReplayError
from cogram_core.guard import Choice
from cogram_core.methods import METHODS, cogram
from cogram_core.methods.contract import MethodParams, TensorMethod, parse_params
from cogram_core.mixing import (
    add_task_vectors,
    mix,
    mix_elementwise,
    plain_average,
    step_towards,
    unpack_shares,
)
from cogram_core.networks.layers import Layer, make_layer
from cogram_core.output import output_dtypes, write_checkpoint
from cogram_core.payload import unpack_values
from cogram_core.permuting import check_permutations, unpack_alignment
from cogram_core.recipe import Recipe
from cogram_core.sources import CheckpointStore, LoadedSource
from cogram_core.trace import VERSION, Decision, Trace


def replay(
    sources: Sequence[str | Path], trace: str | Path, output: str | Path, *, base: str | Path | None = None
) -> Path:
    """Writes the fused checkpoint of a trace again.

    Args:
        sources: the checkpoints' folders or files, in the recipe's order.
        trace: the run's ``trace.parquet``.
        output: the folder to write; it must not exist.
        base: the base's folder or file, where the recipe has one.

    Returns:
        The folder, with the same ``model.safetensors`` (or shards) byte for byte.

    Raises:
        ReplayError: if the trace is not one, is of another version, or belongs to other sources or another base.
        CheckpointError: if a source or the base is not a valid checkpoint.
        OutputError: if the folder can't be written.
    """
    record = Trace(Path(trace))
    origin = _read_metadata(record)
    with ExitStack() as stack:
        stack.enter_context(repeatable(resolve_threads(origin.recipe.threads), torch.device("cpu")))
        stores = [_opened(source, stack) for source in sources]
        loaded, loaded_base = _matched(origin, stores, None if base is None else _opened(base, stack))
        state = rebuild(origin.recipe, loaded, loaded_base, record.decisions(), origin.written)
        with abandoned_folders(Path(output)), atomic_folder(Path(output)) as folder:
            write_checkpoint(
                folder, origin.recipe, loaded[0].store, output_dtypes(origin.recipe, loaded[0].store), state
            )
    return Path(output)


def _opened(checkpoint: str | Path, stack: ExitStack) -> CheckpointStore:
    return CheckpointStore(stack.enter_context(CheckpointReader.open(Path(checkpoint))))


@dataclass(frozen=True)
class _Origin:
    """What a trace's metadata say: the recipe, the sources' names and digests, the base's digest, and what was written."""

    recipe: Recipe
    sources: list[tuple[str, str]]
    base: str | None
    written: Choice


def _read_metadata(record: Trace) -> _Origin:
    if (version := record.metadata["version"]) != VERSION:
        message = f"is of version {version}, this program replays version {VERSION}; use the program that wrote it"
        raise ReplayError([Problem("trace", "replay.other_version", message)])
    try:
        recipe = Recipe.from_document(record.metadata["recipe"])
        sources = [(entry["name"], entry["sha256"]) for entry in record.metadata["sources"]]
        base = record.metadata.get("base")  # not there in older ones
        written = Choice(**record.metadata["written"])
    except (KeyError, TypeError, InvalidInput) as error:
        raise _damaged(f"its metadata don't say how it was made ({error})") from error
    if len(sources) != len(recipe.sources):
        raise _damaged(f"its recipe has {len(recipe.sources)} sources, and {len(sources)} were used")
    if not _is_possible(written, len(sources)):
        raise _damaged("it doesn't say which network was written")
    if (recipe.base is None) != (base is None):
        raise _damaged("its recipe and what it was made with don't agree on a base")
    return _Origin(recipe, sources, base, written)


def _is_possible(written: Choice, sources: int) -> bool:
    """Whether what a file says of a choice is one: a dataclass takes anything."""
    if written.kind == "source":
        return _is_count(written.source) and written.source < sources
    return written.kind in ("average", "stage") and _is_count(written.seq)


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _matched(
    origin: _Origin, stores: Sequence[CheckpointStore], base: CheckpointStore | None
) -> tuple[list[LoadedSource], LoadedSource | None]:
    """The sources and the base to replay with."""
    problems = [*_other_sources(origin.sources, stores), *_other_base(origin.base, base)]
    if problems:
        raise ReplayError(problems)
    dtype, device = getattr(torch, origin.recipe.compute_dtype), torch.device("cpu")
    sources = [
        LoadedSource(source.name, source.weight, store, dtype, device)
        for source, store in zip(origin.recipe.sources, stores, strict=True)
    ]
    return sources, None if base is None else LoadedSource("base", 1.0, base, dtype, device)


def _other_sources(expected: Sequence[tuple[str, str]], stores: Sequence[CheckpointStore]) -> Iterator[Problem]:
    if len(stores) != len(expected):
        names = ", ".join(name for name, _ in expected)
        message = f"the trace has {len(expected)} sources ({names}), here are {len(stores)}; give them in this order"
        yield Problem("sources", "replay.wrong_count", message)
        return
    for (name, sha256), store in zip(expected, stores, strict=True):
        if (digest := store.digest()) != sha256:
            message = f"has sha256 {digest}, the trace was made with {sha256}; give the same checkpoint"
            yield Problem(name, "replay.other_source", message)


def _other_base(expected: str | None, store: CheckpointStore | None) -> Iterator[Problem]:
    if expected is None and store is not None:
        message = "the trace was made without a base; leave it out"
        yield Problem("base", "replay.unused_base", message)
    elif expected is not None and store is None:
        message = f"the trace was made with a base of sha256 {expected}; give it as well"
        yield Problem("base", "replay.missing_base", message)
    elif store is not None and (digest := store.digest()) != expected:
        message = f"has sha256 {digest}, the trace was made with {expected}; give the same checkpoint"
        yield Problem("base", "replay.other_base", message)


def rebuild(
    recipe: Recipe,
    sources: Sequence[LoadedSource],
    base: LoadedSource | None,
    decisions: Iterable[Decision],
    written: Choice,
) -> Callable[[str], Tensor]:
    """The written network's tensors by name, in the compute dtype.

    Args:
        recipe: the run's, resolved.
        sources: in the recipe's order.
        base: where the recipe has one.
        decisions: the trace from its start.
        written: which candidate to build.

    Raises:
        ReplayError: if a decision doesn't fit the sources.
    """
    if written.kind == "source":
        assert written.source is not None
        return sources[written.source].read
    if written.kind == "average":
        return lambda name: plain_average((source.read(name) for source in sources), len(sources))
    sources = list(sources)  # decisions may put others in their place
    state: dict[str, Tensor] = {}
    layers = layers_of(sources[0])
    params = [parse_params(METHODS[stage.method], stage.parameters) for stage in recipe.stages]
    count = 0
    for decision in islice(decisions, written.seq):
        if decision.seq != count:
            raise _damaged(f"decision {count} is missing")
        count += 1
        try:
            _check_stage(decision, recipe)
            apply_decision(decision, sources, base, state, layers, params[decision.stage])
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, CheckpointError) as error:
            raise _damaged(f"decision {decision.seq} doesn't fit the sources: {error}") from error
    floating = {name for name, facts in sources[0].store.facts().items() if facts.floating}
    if count != written.seq or state.keys() != floating:
        raise _damaged(f"its {count} decisions don't make the network that was written")
    return state.__getitem__


def _check_stage(decision: Decision, recipe: Recipe) -> None:
    if not 0 <= decision.stage < len(recipe.stages):
        raise ValueError(f"the recipe has no stage {decision.stage}")
    if decision.method != (method := recipe.stages[decision.stage].method):
        raise ValueError(f"it is of {decision.method}, and stage {decision.stage} is {method}")


def _damaged(what: str) -> ReplayError:
    return ReplayError([Problem("trace", "replay.damaged", f"{what}; get the trace again")])


def layers_of(source: LoadedSource) -> dict[str, Layer]:
    """Each module's own floating tensors, by the part of the name before the last dot."""
    grouped: dict[str, list[str]] = {}
    for name, facts in source.store.facts().items():
        if facts.floating:
            grouped.setdefault(name.rpartition(".")[0], []).append(name)
    return {
        layer: make_layer(layer, {name: source.store.facts()[name].shape for name in names}, 0)
        for layer, names in grouped.items()
    }


def apply_decision(
    decision: Decision,
    sources: list[LoadedSource],
    base: LoadedSource | None,
    state: dict[str, Tensor],
    layers: Mapping[str, Layer],
    params: MethodParams,
) -> None:
    """Carries out one decision on ``state``: a whole tensor is replaced, a unit is changed in its place.

    One that aligns puts other sources into ``sources``.

    Raises:
        KeyError, IndexError, TypeError, ValueError, RuntimeError: if it doesn't fit the sources.
    """
    if decision.action == "aligned":
        _align(decision, sources)
    elif decision.action in {"trained", "solved"}:
        state[decision.layer] = _stored_tensor(decision, sources[0])
    elif decision.action == "merged":
        if decision.kind == "tensor":
            state[decision.layer] = _merged_tensor(decision, sources, base, params).to(sources[0].dtype)
        else:
            _merge_unit(decision, sources, state, layers, params)


def _align(decision: Decision, sources: list[LoadedSource]) -> None:
    if decision.payload is None:
        raise ValueError("it has no alignment")
    axes, permutations = unpack_alignment(decision.payload)
    if len(permutations) != len(sources):
        raise ValueError(f"it aligns {len(permutations)} sources")
    check_permutations(axes, permutations, {name: facts.shape for name, facts in sources[0].store.facts().items()})
    sources[:] = [source.reordered(axes, order) for source, order in zip(sources, permutations, strict=True)]


def _merge_unit(
    decision: Decision,
    sources: Sequence[LoadedSource],
    state: dict[str, Tensor],
    layers: Mapping[str, Layer],
    params: MethodParams,
) -> None:
    if decision.shares is None or decision.step is None:
        raise ValueError("it has no shares or no step")
    _check_unit(decision, decision.shares, decision.step)
    layer = layers[decision.layer]
    column = None if decision.column is None else layer.place(decision.column)
    for name in layer.tensors if column is None else column[:1]:
        current = state[name] if decision.row is None else state[name][decision.row]
        values = [_unit_part(source, name, decision.row) for source in sources]
        if column is not None:
            current = current.view(-1)[column[1]]
            values = [value.reshape(-1)[column[1]] for value in values]
        mixed = mix([*values, *_extra_values(params, current, values)], decision.shares)
        current.copy_(step_towards(current, mixed, decision.step))


def _check_unit(decision: Decision, shares: Sequence[float], step: float) -> None:
    """What torch would carry out as well: it counts negative rows from the end, and mixes by any numbers."""
    if decision.row is not None and decision.row < 0:
        raise ValueError(f"there is no row {decision.row}")
    if decision.row is None and decision.column is not None:
        raise ValueError(f"it has column {decision.column} of no row")
    if math.fsum(shares) != 1 or min(shares) < 0:
        raise ValueError(f"its shares {list(shares)} don't sum to one, or one of them is negative")
    if not 0 < step <= 1:
        raise ValueError(f"its step {step} is not a part of the way")


def _unit_part(source: LoadedSource, name: str, row: int | None) -> Tensor:
    return source.read(name) if row is None else source.read_rows(name, row, row + 1)[0]


def _extra_values(params: MethodParams, current: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
    """What stood in the mix beside the sources."""
    extras = params.extras if isinstance(params, cogram.Params) else ()
    return [current.clone() if extra == "current" else plain_average(values, len(values)) for extra in extras]


def _stored_tensor(decision: Decision, source: LoadedSource) -> Tensor:
    if decision.payload is None:
        raise ValueError("it has no values")
    values = unpack_values(decision.payload, source.store.facts()[decision.layer].shape, source.dtype)
    return values.to(source.device)


def _merged_tensor(
    decision: Decision, sources: Sequence[LoadedSource], base: LoadedSource | None, params: MethodParams
) -> Tensor:
    method = METHODS[decision.method]
    if isinstance(method, TensorMethod) and decision.payload is None:
        return method.merged(decision.layer, sources, base, params)
    values = [source.read(decision.layer) for source in sources]
    if decision.payload is not None:
        bounds = unpack_shares(decision.payload, values[0].shape, len(values))
        return mix_elementwise(values, bounds.to(values[0].device))
    # A mix of whole tensors goes no step from anywhere; a row with a step has lost its payload.
    if decision.shares is None or decision.step is not None:
        raise ValueError(f"{decision.method} needs its shares in the trace")
    if method.needs_base:
        assert base is not None  # the recipe's rules see to it
        if not all(map(math.isfinite, decision.shares)):
            raise ValueError(f"its coefficients {list(decision.shares)} are not numbers")
        return add_task_vectors(base.read(decision.layer), values, decision.shares)
    _check_unit(decision, decision.shares, 1.0)
    return mix(values, decision.shares)
