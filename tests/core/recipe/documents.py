"""Recipe documents: one that is valid, hypothesis strategies for all that are, and a way to see what is wrong with one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import strategies as st

from cogram_core.errors import RecipeError
from cogram_core.recipe import Recipe

SOURCES = [{"name": "a", "checkpoint": "./a"}, {"name": "b", "checkpoint": "./b"}]
DATA = {"evaluation": "eval.safetensors", "holdout": "holdout.safetensors"}


def document(**changes: Any) -> dict[str, Any]:
    """A valid document with some keys exchanged; None takes a key out."""
    valid: dict[str, Any] = {"sources": SOURCES, "data": DATA, "stages": [{"method": "fisher"}, {"method": "cogram"}]}
    return {key: value for key, value in (valid | changes).items() if value is not None}


def _refusal(given: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_document(given)
    return caught.value


def problems(given: Any) -> dict[str, str]:
    """Code of each problem by its location; fails if the document is accepted."""
    return {problem.location: problem.code for problem in _refusal(given).problems}


def messages(given: Any) -> dict[str, str]:
    """Message of each problem by its location."""
    return {problem.location: problem.message for problem in _refusal(given).problems}


def without_idle(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters of ``cogram`` but for those that change nothing as the others stand, which a recipe may not give."""
    paper = parameters.get("preset") == "paper"
    idle: set[str] = set()
    if parameters.get("refinement", "thresholds" if paper else "passes") == "passes":
        idle = {"tau", "tau_min", "tau_max", "tau_scale"}
    elif parameters.get("tau") == "auto":
        idle = {"tau_min", "tau_max"}
    if parameters.get("step", "full" if paper else "backtrack") == "full":
        idle |= {"max_backtracks"}
    kept = {key: value for key, value in parameters.items() if key not in idle}
    if "prototypes" in kept:
        prototypes = kept["prototypes"]
        kind = prototypes.get("kind", "auto")
        unused = {"per_class"} if kind == "all" else set()
        if kind == "all" or (kind == "auto" and "per_class" not in prototypes):
            unused |= {"weighted"}
        kept["prototypes"] = {key: value for key, value in prototypes.items() if key not in unused}
    return kept


LEVELS = ["layer", "neuron", "weight"]
names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z")
paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
positive = st.floats(min_value=1e-6, max_value=1e6)
sizes = st.integers(1, 64)


def _cogram() -> st.SearchStrategy[dict[str, Any]]:
    nonnegative = st.floats(min_value=0, max_value=100) | st.integers(0, 100)
    levels = st.fixed_dictionaries({}, optional=dict.fromkeys(LEVELS, nonnegative))
    sweeps = st.fixed_dictionaries({}, optional=dict.fromkeys(LEVELS, st.integers(0, 9)))
    prototypes = st.fixed_dictionaries(
        {},
        optional={
            "kind": st.sampled_from(["auto", "geometric", "arithmetic", "kmeans", "medoid", "examples", "all"]),
            "per_class": st.integers(1, 4096),
            "weighted": st.booleans(),
        },
    )
    return st.fixed_dictionaries(
        {"method": st.just("cogram")},
        optional={
            "preset": st.sampled_from([None, "paper"]),
            "granularity": st.sampled_from(LEVELS),
            "steepness": nonnegative | levels,
            "steepness_scale": st.sampled_from(["units", "flat"]),
            "refinement": st.sampled_from(["passes", "thresholds"]),
            "tau": st.sampled_from(["given", "auto"]),
            "tau_min": st.floats(0, 1),
            "tau_max": st.none() | st.floats(1, 2),
            "tau_scale": st.sampled_from(["share", "absolute"]),
            "max_sweeps": sweeps,
            "min_gain": nonnegative,
            "rollback": st.sampled_from(["all", "fine"]),
            "step": st.sampled_from(["backtrack", "full"]),
            "max_backtracks": st.integers(0, 30),
            "tolerance": st.floats(0, 0.5),
            "competence": st.floats(0, 100),
            "extra_candidates": st.lists(st.sampled_from(["current", "average"]), unique=True),
            "unit_guard": st.booleans(),
            "mode": st.sampled_from(["exact", "blockwise"]),
            "max_decisions": st.none() | st.integers(1, 10**6),
            "time_budget": st.none() | positive,
            "prototypes": prototypes,
        },
    ).map(without_idle)


stages = st.one_of(
    st.fixed_dictionaries({"method": st.just("linear")}, optional={"normalize": st.booleans()}),
    st.fixed_dictionaries(
        {"method": st.just("fisher")}, optional={"examples": st.integers(1, 10**6), "normalize": st.booleans()}
    ),
    _cogram(),
)
layers = st.one_of(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["linear", "Linear", "LINEAR"]), "in_features": sizes, "out_features": sizes},
        optional={"bias": st.booleans()},
    ),
    st.fixed_dictionaries(
        {"type": st.just("Conv2d"), "in_channels": sizes, "out_channels": sizes, "kernel_size": sizes},
        optional={"padding": st.just("same") | st.integers(0, 3) | st.tuples(sizes, sizes).map(list)},
    ),
    st.sampled_from([{"type": "relu"}, {"type": "Flatten"}, {"type": "dropout", "p": 0.1}, {"type": "GELU"}]),
)
networks = st.just("auto") | st.fixed_dictionaries(
    {"kind": st.just("sequential"), "layers": st.lists(layers, min_size=1, max_size=5)}
)
documents = st.fixed_dictionaries(
    {
        "sources": st.lists(
            st.fixed_dictionaries(
                {"name": names, "checkpoint": paths}, optional={"data": paths, "weight": positive | st.integers(1, 9)}
            ),
            min_size=2,
            max_size=4,
            unique_by=lambda source: source["name"],
        ),
        "data": st.fixed_dictionaries({"evaluation": paths, "holdout": paths}),
        # A preset may turn the guard off, which then refuses stages that are overwritten.
        "stages": st.lists(stages.filter(lambda stage: not stage.get("preset")), min_size=1, max_size=3),
    },
    optional={
        "version": st.just(1),
        "network": networks,
        "guard": st.sampled_from(["best_on_holdout", "report"])
        | st.fixed_dictionaries(
            {"mode": st.sampled_from(["best_on_holdout", "report"])},
            optional={"criterion": st.sampled_from(["calibrated_loss", "loss", "accuracy"])},
        ),
        "compute_dtype": st.sampled_from(["float32", "float64"]),
        "output": st.fixed_dictionaries(
            {},
            optional={
                "dtype": st.sampled_from(["source", "float64", "float32", "bfloat16", "float16"]),
                "max_shard_bytes": st.integers(1, 2**40) | st.sampled_from(["5GB", "512MiB", "1.5 kb", "77"]),
            },
        ),
        "seed": st.integers(0, 2**63 - 1),
        "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:3"]),
        "threads": st.just("auto") | st.integers(1, 1024),
    },
)
"""Valid documents, as JSON could hold them."""
