"""Holds a recipe against the headers of its checkpoints and the facts of its data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from cogram_core.checkpoints.header import CheckpointHeader
from cogram_core.errors import Problem
from cogram_core.preflight.configuration import what_remains
from cogram_core.preflight.data import (
    MASK,
    PLAIN,
    TOKENS,
    DatasetFacts,
    LossKind,
    target_problems,
    token_problems,
    value_problems,
)
from cogram_core.preflight.estimates import Estimates, estimate
from cogram_core.preflight.payloads import payload_problems
from cogram_core.preflight.summaries import CheckpointSummary
from cogram_core.recipe.document import Recipe, SequentialNetwork, Source, TransformersNetwork
from cogram_core.recipe.layers import AnyLayer, Conv1d, Conv2d, Flatten, Linear, Residual, expected_tensors, vocabulary
from cogram_core.recipe.methods import catalogue

_LISTED = 50
_ELEMENTWISE = {"relu", "gelu", "silu", "tanh", "sigmoid", "dropout", "identity"}
_MEANS = {"geometric", "arithmetic", "kmeans"}


@dataclass(frozen=True)
class Preflight:
    """What was found: problems; the network's layers, or its architecture, where a network is needed; estimates."""

    problems: tuple[Problem, ...]
    layers: tuple[AnyLayer, ...] | None
    estimates: Estimates
    architecture: str | None = None


def needs_network(recipe: Recipe) -> bool:
    """Whether anything in the recipe runs forward; else any state dict of any architecture will do."""
    entries = [catalogue()[stage.method] for stage in recipe.stages]
    if recipe.guard.mode != "off" or any(not entry.per_tensor and entry.kind != "choosing" for entry in entries):
        return True
    # What will be chosen runs the network where there is data to run it on.
    named = any(reference.kind == "dataset" for reference in recipe.references())
    return named and any(entry.kind == "choosing" for entry in entries)


def preflight(
    recipe: Recipe, checkpoints: Mapping[str, CheckpointSummary], datasets: Mapping[str, DatasetFacts]
) -> Preflight:
    """Everything that is wrong with a recipe's inputs.

    Args:
        recipe: with every reference of a checkpoint in ``checkpoints`` and every reference of data in ``datasets``.
        checkpoints: summaries by reference.
        datasets: facts by reference.
    """
    first = checkpoints[recipe.sources[0].checkpoint]
    problems = [*_compare_sources(recipe, checkpoints), *_same_data(recipe)]
    floating = {name: spec.shape for name, spec in first.header.tensors.items() if spec.floating}
    problems += payload_problems(recipe, floating)
    layers: tuple[AnyLayer, ...] | None = None
    architecture = None
    if needs_network(recipe):
        described = recipe.network.layers if isinstance(recipe.network, SequentialNetwork) else first.layers
        if isinstance(recipe.network, TransformersNetwork) or described is None:
            architecture, found = architecture_of(recipe.network, first)
            problems += [*found, *_library_problems(recipe, first, datasets)]
        else:
            layers = described
            problems += _compare_layers(recipe, first, layers)
            for location, facts in _data(recipe, datasets):
                problems += _compare_data(layers, facts, location)
        if (layers is not None or architecture is not None) and _reads_tokens(layers, recipe, datasets):
            problems += prototype_problems(recipe)
        judged = (name for name in (recipe.data.evaluation, recipe.data.holdout) if name is not None)
        problems += criterion_problems(recipe, (datasets[name].loss for name in judged))
    estimates = estimate(recipe, first.header, datasets, layers)
    return Preflight(tuple(_limited(problems)), layers, estimates, architecture)


def _reads_tokens(layers: tuple[AnyLayer, ...] | None, recipe: Recipe, datasets: Mapping[str, DatasetFacts]) -> bool:
    if layers is not None:
        return vocabulary(layers) is not None
    return any(facts.token_min is not None or facts.holds_texts for _, facts in _data(recipe, datasets))


def architecture_of(network: object, first: CheckpointSummary) -> tuple[str | None, list[Problem]]:
    """The architecture that a recipe's network, or the first source's ``config.json``, names; or why none."""
    if network == "auto" and first.obstacle:
        return None, [Problem("network", "network.not_inferred", first.obstacle)]
    if first.configuration is None:
        message = f"{first.fault}, by which a transformers network is built; add it, or describe the network"
        return None, [Problem("network", "network.no_configuration", f"{message}; {what_remains()}")]
    if first.configuration.quantized:
        message = f"config.json says that the tensors are quantized; give them as they were before; {what_remains()}"
        return None, [Problem("network", "network.quantized", message)]
    named = network.architecture if isinstance(network, TransformersNetwork) else None
    names = first.configuration.architectures if named is None else (named,)
    if len(names) == 1:
        return names[0], []
    given = f"names {len(names)} architectures ({', '.join(names)})" if names else "names no architecture"
    message = f"config.json {given}; name one: network: {{kind: transformers, architecture: …}}; {what_remains()}"
    return None, [Problem("network", "network.no_architecture", message)]


def _library_problems(
    recipe: Recipe, first: CheckpointSummary, datasets: Mapping[str, DatasetFacts]
) -> Iterator[Problem]:
    """What a configuration tells of the data without its library."""
    configuration = first.configuration
    known = None if configuration is None else configuration.vocabulary
    for location, facts in _data(recipe, datasets):
        low, high = facts.token_min, facts.token_max
        if low is not None and high is not None and known is not None and not facts.padded:
            yield from token_problems(low, high, known, f"{location}: {TOKENS.inputs}")


def _limited(problems: list[Problem]) -> Iterator[Problem]:
    yield from problems[:_LISTED]
    if len(problems) > _LISTED:
        message = f"{len(problems) - _LISTED} more problems are not listed; repair those above first"
        yield Problem("", "preflight.more_problems", message)


def _compare_sources(recipe: Recipe, checkpoints: Mapping[str, CheckpointSummary]) -> Iterator[Problem]:
    reference, *others = recipe.sources
    for source in others:
        yield from _compare_headers(
            reference, checkpoints[reference.checkpoint].header, source.name, checkpoints[source.checkpoint].header
        )
    if recipe.base is not None:
        yield from _compare_headers(
            reference, checkpoints[reference.checkpoint].header, "base", checkpoints[recipe.base].header
        )


def _compare_headers(
    first: Source, expected: CheckpointHeader, source: str, found: CheckpointHeader
) -> Iterator[Problem]:
    for name in sorted(expected.tensors.keys() | found.tensors.keys()):
        place = f"{source}: {name}"
        one, other = expected.tensors.get(name), found.tensors.get(name)
        if other is None:
            message = f"is missing here, {first.name} has it; sources must have the same tensors"
            yield Problem(place, "sources.missing_tensor", message)
        elif one is None:
            message = f"is here, {first.name} has no such tensor; sources must have the same tensors"
            yield Problem(place, "sources.unexpected_tensor", message)
        elif one.shape != other.shape:
            message = f"has shape {list(other.shape)}, in {first.name} it is {list(one.shape)}; fuse like with like"
            yield Problem(place, "sources.shape_mismatch", message)
        elif one.dtype != other.dtype:
            message = f"is {other.dtype}, in {first.name} it is {one.dtype}; convert one of the two"
            yield Problem(place, "sources.dtype_mismatch", message)


def _same_data(recipe: Recipe) -> Iterator[Problem]:
    """A holdout set that decisions have seen would make every verdict a compliment."""
    uses = {"the evaluation data, on which decisions are taken": recipe.data.evaluation}
    uses["the training data"] = recipe.data.training
    uses |= {f"the data of {source.name}, which statistics are taken on": source.data for source in recipe.sources}
    for use, reference in uses.items():
        if recipe.data.holdout is not None and recipe.data.holdout == reference:
            message = f"is {use}; name examples that nothing else sees"
            yield Problem("data.holdout", "recipe.same_data", message)


def _compare_layers(recipe: Recipe, first: CheckpointSummary, layers: tuple[AnyLayer, ...]) -> list[Problem]:
    expected = expected_tensors(layers)
    found = {name: spec.shape for name, spec in first.header.tensors.items() if spec.floating}
    name = recipe.sources[0].name
    problems = []
    for tensor in sorted(expected.keys() | found.keys()):
        if tensor not in found:
            message = f"the network has a tensor {list(expected[tensor])}, the checkpoint has none of this name"
            problems.append(Problem(f"{name}: {tensor}", "network.missing_tensor", message + "; correct the layers"))
        elif tensor not in expected:
            message = f"the checkpoint has a tensor {list(found[tensor])}, the network has none of this name"
            problems.append(Problem(f"{name}: {tensor}", "network.unexpected_tensor", message + "; correct the layers"))
        elif found[tensor] != expected[tensor]:
            message = f"has shape {list(found[tensor])}, the network's is {list(expected[tensor])}; correct the layers"
            problems.append(Problem(f"{name}: {tensor}", "network.shape_mismatch", message))
    return problems


def criterion_problems(recipe: Recipe, losses: Iterable[LossKind]) -> Iterator[Problem]:
    """What data with these losses can't be judged by: right classes, or how sure class scores are."""
    known = set(losses)
    if recipe.guard.mode != "off" and recipe.guard.criterion == "accuracy" and "mean_squared_error" in known:
        message = "accuracy is a share of right classes or tokens, and the data's targets are values; take loss"
        yield Problem("guard.criterion", "recipe.no_accuracy", message)
    for place, stage in enumerate(recipe.stages):
        if stage.method == "adamerging" and known - {"cross_entropy"}:
            message = "adamerging goes by the entropy of class scores, and the data asks for values or tokens; "
            message += "give classes as targets, or take another method"
            yield Problem(f"stages[{place}]", "dataset.no_entropy", message)


def prototype_problems(recipe: Recipe, *, medoids: bool = True) -> Iterator[Problem]:
    """Kinds of prototypes that token data doesn't have; ``medoids``: whether its embedding is known."""
    for place, stage in enumerate(recipe.stages):
        prototypes = stage.parameters.get("prototypes")
        kind = prototypes.get("kind") if isinstance(prototypes, Mapping) else None
        if kind in _MEANS:
            message = f"{kind} is a mean of inputs, and token ids have none; take medoid, examples or all"
        elif kind == "medoid" and not medoids:
            message = "medoids of token data go by the nn.Embedding that the inputs reach, and here they reach none; "
            message += "take examples or all"
        else:
            continue
        yield Problem(f"stages[{place}].prototypes.kind", "recipe.no_such_prototypes", message)


def _data(recipe: Recipe, datasets: Mapping[str, DatasetFacts]) -> Iterator[tuple[str, DatasetFacts]]:
    for reference in recipe.references():
        if reference.kind == "dataset":
            yield reference.location, datasets[reference.value]


def _compare_data(layers: tuple[AnyLayer, ...], facts: DatasetFacts, location: str) -> Iterator[Problem]:
    yield from _compare_inputs(layers, facts, location)
    last = _last_features(layers)
    if last is None:
        return
    if facts.loss == "mean_squared_error":
        shape = facts.target_shape or (1,)
        if shape[-1] != last:
            yield from value_problems(facts.target_shape, (*shape[:-1], last), location)
    elif facts.target_min is not None and facts.target_max is not None:
        name = PLAIN.targets if facts.token_min is None else TOKENS.targets
        yield from target_problems(facts.target_min, facts.target_max, last, f"{location}: {name}")


def _compare_inputs(layers: tuple[AnyLayer, ...], facts: DatasetFacts, location: str) -> Iterator[Problem]:
    if facts.padded:
        message = "has places that are not 1, but networks of torch.nn layers take no mask; padded data come with the "
        message += "transformers networks, so give sequences of one length without padding"
        yield Problem(f"{location}: {MASK}", "dataset.padded", message)
    if facts.holds_texts:
        message = "are texts, which the tokenizer of a transformers network reads; give numbers or token ids"
        yield Problem(location, "dataset.texts_without_tokenizer", message)
    elif facts.token_min is not None and facts.token_max is not None:
        known, place = vocabulary(layers), f"{location}: {TOKENS.inputs}"
        if facts.loss == "causal_lm" and facts.target_shape != facts.input_shape:
            given, wanted = facts.target_shape[0], facts.input_shape[0]
            message = f"are labels of {given} places, and the texts have {wanted}; give each place one"
            yield Problem(f"{location}: {TOKENS.targets}", "dataset.invalid_targets", message)
        if known is None:
            message = "are token ids, but the network does not begin with an embedding; give numbers as inputs"
            yield Problem(place, "dataset.tokens_without_embedding", message)
        else:
            yield from token_problems(facts.token_min, facts.token_max, known, place)
    elif (wrong := _wrong_input(layers, facts.input_shape)) is not None:
        message = f"{wrong}; give data of this network, or correct the layers"
        yield Problem(f"{location}: inputs", "dataset.wrong_shape", message)


def _wrong_input(layers: tuple[AnyLayer, ...], shape: tuple[int, ...]) -> str | None:
    """Why the first layer with weights can't take an input, as far as that can be told without running."""
    for layer in layers:
        if isinstance(layer, Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
            shape = (math.prod(shape),)
        elif isinstance(layer, Linear):
            if shape[-1] != layer.in_features:
                return f"an input has shape {list(shape)}, the first layer takes {layer.in_features} features"
            return None
        elif isinstance(layer, Conv1d | Conv2d):
            dimensions = 2 if isinstance(layer, Conv1d) else 3
            if len(shape) != dimensions or shape[0] != layer.in_channels:
                wanted = f"{layer.in_channels} channels in {dimensions} dimensions"
                return f"an input has shape {list(shape)}, the first layer takes {wanted}"
            return None
        elif isinstance(layer, Residual):
            return _wrong_input(layer.layers, shape)
        elif layer.torch_class.lower() not in _ELEMENTWISE:
            return None
    return None


def _last_features(layers: tuple[AnyLayer, ...]) -> int | None:
    """The size of the output's last dimension, as far as that can be told without running: classes, values, tokens."""
    for layer in reversed(layers):
        if isinstance(layer, Linear):
            return layer.out_features
        if isinstance(layer, Residual):
            return _last_features(layer.layers)
        if layer.torch_class.lower() not in _ELEMENTWISE:
            return None
    return None
