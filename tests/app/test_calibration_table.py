"""The table that ``cogram calibrate`` prints, with the widest cells that it can have."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from app.cli.calibrate import _trials_table

LARGE = {
    "steepness": {"layer": 0.34375, "neuron": 0.046875, "weight": 0.015625},
    "competence": 0.5,
    "refinement": "thresholds",
    "tau": "given",
    "tau_min": 0.001234,
    "tau_max": 0.01234,
}
FIGURES = {"loss": 12.3456, "calibrated_loss": 12.3456, "accuracy": 0.9876}


def trial(number: int) -> dict[str, Any]:
    rest = {"evaluation": FIGURES, "holdout": FIGURES, "accepted": 123456, "rolled_back": 98765}
    return {"number": number, "parameters": LARGE, **rest}


@pytest.mark.parametrize("criterion", ["calibrated_loss", "accuracy"])
def test_at_80_columns_nothing_is_cut(criterion: str) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(_trials_table([trial(0), trial(38)], 38, criterion))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, printed.splitlines())) <= 80
    words = set(printed.split())
    assert {"trial", "λ", "layer,", "neuron,", "weight", "κ", "τ", "evaluation", "holdout", "accuracy"} <= words
    assert {"own", "best", "0", "38"} <= words
    cells = {"0.34375,", "0.046875,", "0.015625", "0.5", "0.001234", "0.01234", "0.9876"}
    assert cells | ({"12.3456"} if criterion == "calibrated_loss" else set()) <= words
