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


def run(asking: Asking, settings: Sequence[str] = SETTINGS) -> str:
    """Accuracy after training from Fisher's average and from CoGraM's network."""
    rows, drawn = [], {}
    for setting in settings:
        plain = {name: _curves(asking, setting, name, 0, _PLAIN) for name in _STARTS}
        kicked = {name: _curves(asking, setting, name, KICKOFF, (EPOCHS,))[0] for name in _STARTS}
        drawn[setting] = {name: [*plain[name][1:], kicked[name]] for name in _STARTS}
        for name, both in kicked.items():
            start, after, longer = plain[name]
            rows.append(
                [
                    f"{NAMES[setting]}, from {name}",
                    *(spread(values) for values in (start, after, longer, both)),
                    paired(both, after),
                    paired(both, longer),
                    paired(both, kicked["Fisher"]),
                ]
            )
    _draw(asking, drawn)
    head = ["", "start", "20 epochs", "28 epochs", "kickoff, 20 epochs", "kickoff − 20 epochs (worst)"]
    head += ["kickoff − 28 epochs (worst)", "kickoff: − the same from Fisher (worst)"]
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


def _draw(asking: Asking, drawn: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> None:
    figure, axes = plotting.panels(len(drawn), 7.4, 3.1)
    for panel, (setting, found) in zip(axes, drawn.items(), strict=True):
        for index, (name, values) in enumerate(found.items()):
            plotting.curve(panel, range(3), values, f"from {name}", index, shift=0.1 * (index - 0.5), joined=False)
        panel.set_title(NAMES[setting])
        panel.set_xticks(range(3), ["20", "28", "kickoff 8,\nthen 20"])
        panel.set_xlabel("epochs of training after the fusion")
    axes[0].set_ylabel("test accuracy, %")
    axes[-1].legend(loc="lower right")
    plotting.save(figure, asking.figures, "kickoff")
