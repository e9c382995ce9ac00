"""CoGraM down to layers, to neurons, to single weights."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.paper import plotting
from bench.paper.asking import FISHER, NAMES, Asking, accuracies, cogram, seeds
from bench.paper.tables import markdown, paired, spread

LEVELS = ("layer", "neuron", "weight")
SEEDS = {"iid-same": 5, "skewed-same": 5, "digits-cnn": 3}
"""At most, where a run at weight level takes long."""

# The weight level evaluates every single number of a network, so it is given fewer examples, and the other levels the same
# ones. In blocks it takes its decisions approximately; one by one takes twice as long and ends alike.
_SYNTHETIC: Mapping[str, Any] = {"kind": "examples", "per_class": 25}
_CONVOLUTIONS: Mapping[str, Any] = {"kind": "examples", "per_class": 10}
_ALL: Mapping[str, Any] = {"kind": "all"}


def synthetic(asking: Asking) -> str:
    """On synthetic data."""
    return _run(asking, {"iid-same": _SYNTHETIC, "skewed-same": _SYNTHETIC}, "levels-synthetic")


def real(asking: Asking) -> str:
    """On handwritten digits."""
    return _run(asking, {"digits-mlp": _ALL, "digits-cnn": _CONVOLUTIONS}, "levels-digits")


def _run(asking: Asking, settings: Mapping[str, Mapping[str, Any]], figure: str) -> str:
    rows, drawn = [], {}
    for setting, prototypes in settings.items():
        few = asking.first(SEEDS.get(setting, len(asking.seeds)))
        runs = {"Fisher": few.fused(setting, FISHER)}
        for level in LEVELS:
            runs[level] = few.fused(setting, cogram(level, prototypes=dict(prototypes), mode=_mode(level)))
        drawn[setting] = found = {name: accuracies(answers) for name, answers in runs.items()}
        for before, level in zip(("Fisher", *LEVELS), LEVELS, strict=False):
            seconds = statistics.median(answer["cpu_seconds"] for answer in runs[level])
            counts = [float(answer["accepted"]) for answer in runs[level]]
            rows.append(
                [
                    f"{NAMES[setting]}; {seeds(few)}",
                    level,
                    spread(found[level]),
                    paired(found[level], found["Fisher"]),
                    paired(found[level], found[before]),
                    spread(counts, 0),
                    f"{seconds:.1f}",
                ]
            )
    _draw(asking, drawn, figure)
    head = ["", "finest level", "test accuracy, %", "− Fisher (worst)", "− level before (worst)", "accepted", "seconds"]
    return markdown(head, rows)


def _mode(level: str) -> str:
    return "blockwise" if level == "weight" else "exact"


def _draw(asking: Asking, drawn: Mapping[str, Mapping[str, Sequence[float]]], name: str) -> None:
    figure, axes = plotting.panels(len(drawn), 6.4, 2.9)
    for panel, (setting, found) in zip(axes, drawn.items(), strict=True):
        for run in zip(*found.values(), strict=True):
            panel.plot(range(len(found)), run, color=plotting.SKY, alpha=0.5, linewidth=0.8)
        plotting.curve(panel, range(len(found)), list(found.values()), "mean", 0)
        panel.set_xticks(range(len(found)), ["Fisher", "layers", "neurons", "weights"])
        panel.set_title(NAMES[setting])
    axes[0].set_ylabel("test accuracy, %")
    figure.supxlabel("thin: a seed; thick: mean ± standard error", fontsize=8.5, color=plotting.GREY)
    plotting.save(figure, asking.figures, name)
