"""Fine-tuning after the fusion: with and without a kickoff, and after how good a start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.paper import plotting
from bench.paper.asking import FISHER, NAMES, Asking, cogram
from bench.paper.measuring import training
from bench.paper.tables import markdown, paired, spread

SETTINGS = ("skewed-same", "digits-mlp")
RATE, BATCH = 1e-3, 64
KICKOFF, EPOCHS = 8, 20
_STARTS = {"Fisher": FISHER, "CoGraM": cogram("neuron")}
_PLAIN = (0, EPOCHS, KICKOFF + EPOCHS)
_KICKED = (0, EPOCHS)


def run(asking: Asking, settings: Sequence[str] = SETTINGS) -> str:
    """Accuracy after as many epochs, from Fisher's average and from CoGraM's network."""
    rows, drawn = [], {}
    for setting in settings:
        plain = {name: _curves(asking, setting, name, 0, _PLAIN) for name in _STARTS}
        kicked = {name: _curves(asking, setting, name, KICKOFF, _KICKED) for name in _STARTS}
        drawn[setting] = {
            f"{name}, {what}": (places, curves[name])
            for what, places, curves in (
                ("no kickoff", _PLAIN, plain),
                ("kickoff", (0, *(KICKOFF + epochs for epochs in _KICKED)), kicked),
            )
            for name in _STARTS
        }
        reference = plain["Fisher"][_PLAIN.index(EPOCHS)]
        for name in _STARTS:
            start, after, longer = (plain[name][_PLAIN.index(epochs)] for epochs in (0, EPOCHS, KICKOFF + EPOCHS))
            both = kicked[name][-1]
            rows.append([f"{NAMES[setting]}, from {name}", *(spread(values) for values in (start, after, longer, both)),
                         paired(both, after), paired(both, longer), paired(after, reference)])  # fmt: skip
            kicked[name].insert(0, start)
    _draw(asking, drawn)
    head = ["", "start", "20 epochs", "28 epochs", "kickoff, 20 epochs", "kickoff − 20 epochs (worst)"]
    head += ["kickoff − 28 epochs (worst)", "20 epochs: − the same from Fisher (worst)"]
    return markdown(head, rows)


def _curves(asking: Asking, setting: str, start: str, kickoff: int, epochs: Sequence[int]) -> list[list[float]]:
    """Test accuracy in %, place by place of ``epochs``, a number a seed."""
    found = asking.ask(
        training,
        setting=setting,
        stages=list(_STARTS[start]),
        kickoff=kickoff,
        epochs=list(epochs),
        lr=RATE,
        batch_size=BATCH,
    )
    return [list(values) for values in zip(*(answer["test"] for answer in found), strict=True)]


def _draw(asking: Asking, drawn: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[Sequence[float]]]]]) -> None:
    figure, axes = plotting.panels(len(drawn), 7.4, 3.1)
    for panel, (setting, curves) in zip(axes, drawn.items(), strict=True):
        for index, (label, (places, values)) in enumerate(curves.items()):
            plotting.curve(panel, places, values, label, index)
        panel.set_title(NAMES[setting])
        panel.set_xlabel("epochs of training after the fusion")
    axes[0].set_ylabel("test accuracy, %")
    axes[-1].legend(loc="lower right")
    plotting.save(figure, asking.figures, "kickoff")
