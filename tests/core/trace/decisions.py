"""Decisions to write."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from cogram_core.trace import Decision


def decision(seq: int, **changes: Any) -> Decision:
    """A plausible row."""
    values: dict[str, Any] = {
        "seq": seq,
        "stage": 1,
        "method": "cogram",
        "sweep": 0,
        "layer": f"layer{seq % 3}",
        "kind": "neuron",
        "row": seq,
        "column": None,
        "loss_before": 1.0,
        "loss_sources": (0.5, 0.75),
        "spread": 0.25,
        "shares": (0.25, 0.75),
        "step": 1.0,
        "action": "merged",
        "loss_after": 0.5,
        "reason": "the loss fell",
        "elapsed": 0.125 * seq,
    }
    return Decision(**(values | changes))


_losses = st.none() | st.floats(allow_nan=False)
_tuples = st.none() | st.lists(st.floats(allow_nan=False), max_size=4).map(tuple)
_text = st.text(st.characters(codec="utf-8"), max_size=8)
decisions = st.builds(
    Decision,
    seq=st.integers(0, 2**62),
    stage=st.integers(0, 2**30),
    method=_text,
    sweep=st.integers(0, 2**30),
    layer=_text,
    kind=st.sampled_from(["tensor", "layer", "neuron"]),
    row=st.none() | st.integers(0, 2**62),
    column=st.none() | st.integers(0, 2**62),
    loss_before=_losses,
    loss_sources=_tuples,
    spread=_losses,
    shares=_tuples,
    step=_losses,
    action=st.sampled_from(["merged", "refined", "rolled_back", "skipped"]),
    loss_after=_losses,
    reason=_text,
    elapsed=st.floats(0, 1e9),
    payload=st.none() | st.binary(max_size=20),
)
"""Rows of every kind."""

METADATA = {"version": 1, "recipe": {}, "sources": [], "written": {}, "verdict": {}}
