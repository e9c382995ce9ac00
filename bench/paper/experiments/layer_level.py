"""Fisher against Fisher and CoGraM at layer level, without and with the guard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.paper import plotting
from bench.paper.asking import FISHER, NAMES, Asking, accuracies, cogram
from bench.paper.tables import differences, markdown, paired, spread, standard_error

SYNTHETIC = ("iid-same", "skewed-same", "iid-different", "skewed-different")
REAL = ("digits-mlp", "digits-cnn")


def synthetic(asking: Asking) -> str:
    """On synthetic data."""
    return run(asking, SYNTHETIC, "layer-synthetic")


def real(asking: Asking) -> str:
    """On handwritten digits."""
    return run(asking, REAL, "layer-digits")


def run(asking: Asking, settings: Sequence[str], figure: str) -> str:
    """A row a setting."""
    rows, drawn = [], {}
    for setting in settings:
        better = [max(found["test"]) for found in asking.sources(setting)]
        fisher = accuracies(asking.fused(setting, FISHER))
        layer = accuracies(asking.fused(setting, cogram("layer")))
        guarded = accuracies(asking.fused(setting, cogram("layer"), "best_on_holdout"))
        drawn[setting] = differences(layer, fisher), differences(guarded, fisher)
        figures = [spread(values) for values in (better, fisher, layer, guarded)]
        rows.append([NAMES[setting], *figures, paired(layer, fisher), paired(guarded, fisher), paired(guarded, better)])
    _draw(asking, drawn, figure)
    head = ["", "better source", "Fisher", "+ layer level", "+ guard"]
    head += ["layer − Fisher (worst)", "guarded − Fisher (worst)", "guarded − better source (worst)"]
    return markdown(head, rows)


def _draw(asking: Asking, drawn: Mapping[str, tuple[list[float], list[float]]], name: str) -> None:
    """A dot a seed, and the mean with its standard error."""
    figure, (axes,) = plotting.panels(1, 6.4, 0.75 + 0.62 * len(drawn))
    looks = (("without guard", plotting.ORANGE, -0.17, "s"), ("with guard", plotting.BLUE, 0.17, "o"))
    for place, values in enumerate(drawn.values()):
        for (label, colour, shift, marker), found in zip(looks, values, strict=True):
            at = place + shift
            axes.plot(found, [at] * len(found), marker, color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
            axes.errorbar(
                [sum(found) / len(found)],
                [at],
                xerr=[standard_error(found)],
                fmt=marker,
                color=colour,
                capsize=3,
                markersize=7,
                label=label if place == 0 else None,
            )
    axes.axvline(0, color=plotting.GREY, linewidth=1)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_yticks(range(len(drawn)), [NAMES[setting] for setting in drawn])
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.set_xlabel("test accuracy minus Fisher's, in points (a dot a seed; mean ± standard error)")
    axes.legend(loc="best")
    plotting.save(figure, asking.figures, name)
