"""Kinds and numbers of prototypes: what they do to the fused network, and how well they tell which neuron is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.paper import plotting
from bench.paper.asking import FISHER, Asking, accuracies, cogram
from bench.paper.measuring import correlations
from bench.paper.tables import markdown, paired, spread

SETTING = "skewed-same"
KINDS = ("geometric", "arithmetic", "medoid", "examples")
"""``kmeans`` is left out: the centroid of a group is its arithmetic mean, so its figures are the same to the last digit."""
COUNTS = (1, 4, 16, 64)


def run(asking: Asking) -> str:
    """The table by kind and number; at the end, all examples."""
    fisher = accuracies(asking.fused(SETTING, FISHER))
    chosen: list[dict[str, Any]] = [{"kind": kind, "per_class": count} for kind in KINDS for count in COUNTS]
    chosen.append({"kind": "all"})
    answers = asking.ask(correlations, setting=SETTING, prototypes=chosen)
    rows, drawn = [], {}
    for place, params in enumerate(chosen):
        found = accuracies(asking.fused(SETTING, cogram("neuron", prototypes=params)))
        seen = {name: [answer[name][place] for answer in answers] for name in ("loss", "accuracy")}
        drawn[params["kind"], params.get("per_class")] = {"test": found, **seen}
        rows.append(
            [
                params["kind"],
                str(params.get("per_class", "about 100")),
                spread(found),
                paired(found, fisher),
                spread(seen["loss"], 2),
                spread(seen["accuracy"], 2),
            ]
        )
    _draw(asking, drawn, sum(fisher) / len(fisher))
    head = ["kind", "a class", "test accuracy, %", "− Fisher (worst)"]
    head += ["correlation with test loss", "with test accuracy"]
    return markdown(head, rows)


def _draw(asking: Asking, drawn: Mapping[tuple[str, int | None], Mapping[str, Sequence[float]]], fisher: float) -> None:
    figure, axes = plotting.panels(2, 7.4, 3.3)
    for panel, what in zip(axes, ("test", "loss"), strict=True):
        for index, kind in enumerate(KINDS):
            values = [drawn[kind, count][what] for count in COUNTS]
            plotting.curve(panel, range(len(COUNTS)), values, kind, index, shift=0.06 * (index - 1.5))
        plotting.curve(panel, [len(COUNTS)], [drawn["all", None][what]], "all examples", 5)
        panel.set_xticks(range(len(COUNTS) + 1), [*map(str, COUNTS), "all"])
        panel.set_xlabel("prototypes a class")
    axes[0].axhline(fisher, color=plotting.GREY, linestyle="--", linewidth=1)
    axes[0].text(len(COUNTS), fisher, "Fisher", color=plotting.GREY, ha="center", va="bottom")
    axes[0].set_title("after CoGraM down to neurons")
    axes[0].set_ylabel("test accuracy, %")
    axes[1].set_title("what a neuron does to the loss")
    axes[1].set_ylabel("correlation, prototypes with test data")
    axes[1].legend(loc="lower right")
    plotting.save(figure, asking.figures, "prototypes")
