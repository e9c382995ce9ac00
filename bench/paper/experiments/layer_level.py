"""Fisher against Fisher and CoGraM at layer level, without and with the guard."""

from __future__ import annotations

import statistics
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
    """A dot a seed, and the mean with its standard error; scales differ from panel to panel."""
    figure, axes = plotting.panels(len(drawn), 1.1 + 1.75 * len(drawn), 2.9)
    looks = ((plotting.ORANGE, "s"), (plotting.BLUE, "o"))
    for panel, (setting, values) in zip(axes, drawn.items(), strict=True):
        for place, ((colour, marker), found) in enumerate(zip(looks, values, strict=True)):
            panel.plot([place] * len(found), found, marker, color=colour, alpha=0.35, markersize=4, markeredgewidth=0)
            mean, error = statistics.fmean(found), standard_error(found)
            panel.errorbar([place + 0.2], [mean], yerr=[error], fmt=marker, color=colour, capsize=3)
        panel.axhline(0, color=plotting.GREY, linewidth=1)
        panel.set_xticks((0.1, 1.1), ("no guard", "guard"))
        panel.set_xlim(-0.4, 1.7)
        panel.set_title(NAMES[setting].replace(", ", ",\n", 1))
    axes[0].set_ylabel("test accuracy minus Fisher's, points")
    figure.supxlabel("pale: a seed; full: mean ± standard error", fontsize=8.5, color=plotting.GREY)
    plotting.save(figure, asking.figures, name)
