"""Promise 1: with the guard on, what is written is no worse on holdout than any input, average or initial merge."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cogram_core import fuse
from tests.core.factories import conv_net, initialise, mlp, points, read_output, recipe_document, specialists, trained
from tests.core.promises.judging import criterion, plain_average, rounded

NEURON = {"method": "cogram", "granularity": "neuron", "prototypes": {"per_class": 3}}
DTYPES = {"source": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check(
    modules: Sequence[nn.Module],
    name: str,
    seed: int,
    *,
    stored: torch.dtype | None = None,
    out: str = "source",
    initial: str = "fisher",
) -> dict[str, Any]:
    """Fuses in a folder of its own and compares the written file with everything that it must not be worse than."""
    convolution = isinstance(next(modules[0].children()), nn.Conv2d)
    shape, classes = ((1, 4, 4), 3) if convolution else ((6,), 4)
    evaluation, holdout = (points(seed + place, 40, shape, classes) for place in (90, 91))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        guard = {"mode": "best_on_holdout", "criterion": name}
        shared = {"evaluation": evaluation, "dtype": stored, "output": {"dtype": out}}
        document = recipe_document(root / "in", modules, [initial, NEURON], holdout=holdout, guard=guard, **shared)
        fusion = fuse(document, root / "out")
        first = {
            **document,
            "stages": [{"method": initial}],
            "guard": "off",
            "data": {"evaluation": document["data"]["evaluation"]},
        }
        fuse(first, root / "initial")
        sources = [Path(source["checkpoint"]) for source in document["sources"]]
        states = {f"source {place}": read_output(path) for place, path in enumerate(sources)}
        states |= {"average": plain_average(sources), "initial merge": read_output(root / "initial")}
        dtype = DTYPES[out] or stored
        worth = {label: criterion(name, modules[0], rounded(state, dtype), holdout) for label, state in states.items()}
        written = criterion(name, modules[0], read_output(root / "out"), holdout)
        assert written <= min(worth.values()) + 1e-7, (written, worth, fusion.verdict["summary"])
        best_source = min(value for label, value in worth.items() if label.startswith("source"))
        if abs(written - best_source) > 1e-7:
            assert fusion.verdict["fused_beats_all_sources"] is (written < best_source)
        return fusion.verdict


@pytest.mark.parametrize("name", ["calibrated_loss", "loss", "accuracy"])
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**30), build=st.sampled_from([mlp, conv_net]), count=st.integers(2, 3))
def test_the_written_checkpoint_is_never_worse(name: str, seed: int, build: Any, count: int) -> None:
    check(specialists(seed, count, build), name, seed)


@pytest.mark.parametrize("name", ["calibrated_loss", "loss", "accuracy"])
@pytest.mark.parametrize("out", ["bfloat16", "float16"])
@settings(deadline=None, max_examples=2)
@given(seed=st.integers(0, 2**30))
def test_the_guard_judges_what_is_written_where_the_output_is_rounded(name: str, out: str, seed: int) -> None:
    check(specialists(seed), name, seed, out=out)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
@settings(deadline=None, max_examples=2)
@given(seed=st.integers(0, 2**30), initial=st.sampled_from(["linear", "fisher"]))
def test_sources_of_half_precision_are_never_beaten_by_their_fusion(
    stored: torch.dtype, seed: int, initial: str
) -> None:
    check(specialists(seed), "calibrated_loss", seed, stored=stored, initial=initial)


def test_where_nothing_is_better_than_a_source_it_is_written_unchanged_and_the_verdict_says_so(tmp_path: Path) -> None:
    good, (evaluation, holdout) = trained(mlp(1), points(5, 200), 60), (points(90), points(91))
    document = recipe_document(
        tmp_path / "in", [good, initialise(mlp(7), 7, 5.0)], ["fisher"], evaluation=evaluation, holdout=holdout
    )
    fusion = fuse({**document, "guard": {"mode": "best_on_holdout", "criterion": "loss"}}, tmp_path / "out")
    assert fusion.verdict["written"]["kind"] == "source"
    assert fusion.verdict["fused_beats_all_sources"] is False
    assert fusion.verdict["summary"].startswith(
        "Nothing was better than the source module-0, so it was written unchanged"
    )
    source = Path(document["sources"][0]["checkpoint"])
    found, original = read_output(tmp_path / "out"), read_output(source)
    assert all(torch.equal(found[key], original[key]) for key in original)
