"""What is asked, one module a question: each has a ``TITLE`` and ``run``, which gives Markdown and draws figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.paper.asking import Asking
from bench.paper.experiments import competence, kickoff, layer_level, levels, prototypes, thresholds


@dataclass(frozen=True)
class Experiment:
    """A question in words, and what answers it."""

    title: str
    run: Callable[[Asking], str]


EXPERIMENTS: Mapping[str, Experiment] = {
    "layer": Experiment("1. Fisher, and CoGraM at layer level", layer_level.synthetic),
    "levels": Experiment("2. Layers, neurons, weights", levels.synthetic),
    "kickoff": Experiment("3. Kickoff before fine-tuning", kickoff.run),
    "prototypes": Experiment("4. Kinds and numbers of prototypes", prototypes.run),
    "thresholds": Experiment("5. Thresholds and steepness, and the paper's preset", thresholds.run),
    "real-layer": Experiment("6a. Layer level on real data", layer_level.real),
    "real-levels": Experiment("6b. Layers, neurons, weights on real data", levels.real),
    "competence": Experiment("7. Competence κ", competence.run),
}
