"""One look for all figures: little ink, colours that colour-blind readers can tell apart, the same bytes on every run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image

from bench.paper.tables import standard_error

mpl.use("agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, the darker ones first.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9"
GREY = "#666666"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "svg.hashsalt": "cogram",  # else every run draws other identifiers
    "svg.fonttype": "none",
}


def panels(count: int, width: float, height: float, *, shared: bool = False) -> tuple[Figure, list[Axes]]:
    """A row of ``count`` panels; width and height of the whole in inches; ``shared``: one y axis."""
    mpl.rcParams.update(_STYLE)
    figure, axes = pyplot.subplots(
        1, count, figsize=(width, height), sharey=shared, layout="constrained", squeeze=False
    )
    return figure, list(axes[0])


def curve(
    axes: Axes,
    places: Sequence[float],
    seeds: Sequence[Sequence[float]],
    label: str,
    index: int,
    *,
    shift: float = 0.0,
    joined: bool = True,
) -> None:
    """Means over seeds with standard errors as bars. ``seeds`` has one sequence a place; ``index`` picks the look."""
    means = [sum(values) / len(values) for values in seeds]
    errors = [standard_error(values) for values in seeds]
    axes.errorbar(
        [place + shift for place in places],
        means,
        yerr=errors,
        label=label,
        linestyle="-" if joined else "",
        color=COLOURS[index],
        marker=MARKERS[index],
        capsize=2,
        elinewidth=1,
    )


def save(figure: Figure, folder: Path, name: str) -> None:
    """As SVG without a date, and as PNG in 64 colours, which is all that such a figure needs."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.canvas.draw()
    pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(64, dither=Image.Dither.NONE).save(folder / f"{name}.png", optimize=True)
    pyplot.close(figure)
