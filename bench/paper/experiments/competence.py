"""Competence κ: how much of the better source's advantage is taken out of every local decision, and what that does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.paper import plotting
from bench.paper.asking import FISHER, NAMES, Asking, cogram
from bench.paper.storing import Answer
from bench.paper.tables import markdown, spread

SETTINGS = ("skewed-same", "skewed-uneven")
LEVELS = ("layer", "neuron")
VALUES = (0.0, 0.5, 1.0)
MEASURED = ("test accuracy", "weaker source's classes", "better source's classes", "share of the better source")
_PROTOTYPES: Mapping[str, Any] = {"kind": "examples", "per_class": 25}


def run(asking: Asking) -> str:
    """κ by level and setting."""
    rows, drawn = [], {}
    for setting in SETTINGS:
        sources = asking.sources(setting)
        start = _read(sources, asking.fused(setting, FISHER))
        rows.append([NAMES[setting], "Fisher", "", *(spread(start[name]) for name in MEASURED[:3]), ""])
        for level in LEVELS:
            for value in VALUES:
                stages = cogram(level, competence=value, prototypes=dict(_PROTOTYPES))
                found = drawn[setting, level, value] = _read(sources, asking.fused(setting, stages))
                shown = [spread(found[name]) for name in MEASURED[:3]]
                rows.append([NAMES[setting], level, f"{value:g}", *shown, spread(found[MEASURED[3]], 3)])
    _draw(asking, drawn)
    return markdown(["", "level", "κ", *MEASURED], rows)


def _read(sources: Sequence[Answer], answers: Sequence[Answer]) -> dict[str, list[float]]:
    """A number a seed for each of ``MEASURED``; the better source is the one with the lower evaluation loss."""
    found: dict[str, list[float]] = {name: [] for name in MEASURED}
    for source, answer in zip(sources, answers, strict=True):
        better = int(source["loss"][1] < source["loss"][0])
        values = (answer["test"], answer["own"][1 - better], answer["own"][better])
        for name, value in zip(MEASURED, values, strict=False):
            found[name].append(value)
        if answer["shares"]:
            found[MEASURED[3]].append(answer["shares"][better])
    return found


def _draw(asking: Asking, drawn: Mapping[tuple[str, str, float], Mapping[str, Sequence[float]]]) -> None:
    figure, axes = plotting.panels(len(SETTINGS), 7.4, 3.1, shared=True)
    for panel, setting in zip(axes, SETTINGS, strict=True):
        for index, name in enumerate(MEASURED[:3]):
            values = [drawn[setting, "neuron", value][name] for value in VALUES]
            plotting.curve(panel, VALUES, values, "all classes" if index == 0 else name, index)
        panel.set_xticks(VALUES, [f"{value:g}" for value in VALUES])
        panel.set_xlabel("κ")
        panel.set_title(NAMES[setting])
    axes[0].set_ylabel("test accuracy, %, neuron level")
    axes[1].legend(loc="best")
    plotting.save(figure, asking.figures, "competence")
