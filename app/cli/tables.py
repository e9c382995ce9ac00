"""What came of a fusion, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Column, Table


def candidates_table(verdict: Mapping[str, Any]) -> Table:
    """Every candidate's figures; the one that was written is marked."""
    table = Table(Column("on holdout data", no_wrap=True), "loss", "calibrated", "accuracy", "evaluation loss", "")
    for candidate in verdict["candidates"]:
        holdout, evaluation = candidate["holdout"] or {}, candidate["evaluation"] or {}
        table.add_row(
            candidate["label"],
            _number(holdout.get("loss")),
            _number(holdout.get("calibrated_loss")),
            _percent(holdout.get("accuracy")),
            _number(evaluation.get("loss")),
            "written" if _is_written(candidate, verdict["written"]) else "",
        )
    return table


def layers_table(layers: Sequence[Mapping[str, Any]], sources: Sequence[str]) -> Table:
    """What was decided about each layer, stage by stage, with the mean share of each source."""
    table = Table("stage", "layer", "merged", "trained", "rolled back", "skipped", "loss gained", *sources)
    for layer in layers:
        shares = layer["mean_shares"] or [None] * len(sources)
        merged = layer["merged"] + layer["solved"] + layer["aligned"]
        counts = map(str, (merged, layer["trained"], layer["rolled_back"], layer["skipped"]))
        gain = _number(layer["loss_gained"]) if layer["loss_gained"] else ""
        table.add_row(str(layer["stage"]), layer["layer"], *counts, gain, *(_percent(share) for share in shares))
    return table


def _is_written(candidate: Mapping[str, Any], written: Mapping[str, Any]) -> bool:
    return all(candidate[key] == written[key] for key in ("kind", "label", "source", "seq"))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
