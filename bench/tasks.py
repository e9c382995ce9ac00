"""The tasks on which quality is measured: data, and the networks that sources trained on their shares of it.

Two kinds of data:

- ``synthetic``: 20 classes of three Gaussian clumps each in 40 features. Drawn anew for every seed; 10,000 test examples.
- ``digits``: scikit-learn's handwritten digits (1,797 images of 8 × 8), cut anew for every seed. The data is small, so the
  training part is too, and what remains makes a test set of 697.

Skewed sources see all training examples of their half of the classes and a tenth of the others'; IID ones see a random half
of all. Sources start from the same initialisation or each from its own. A task is the same on every call with one seed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

Examples = tuple[Tensor, Tensor]
"""Inputs (N, …) in float32, targets (N) in int64."""

_MINORITY = 0.1
_BATCH = 64
_CLASSES, _CLUMPS, _FEATURES = 20, 3, 40


@dataclass(frozen=True)
class Setting:
    """What a task is made of."""

    name: str
    data: str
    make: Callable[[], nn.Sequential]
    skewed: bool
    same_start: bool
    epochs: int
    rate: float


@dataclass(frozen=True)
class Task:
    """Trained sources, and the data.

    ``training`` is the whole training part and ``shares`` what each source saw of it; no source saw any of
    ``evaluation`` (for decisions), ``holdout`` (for the guard) and ``test`` (for nobody but the benchmark).
    """

    setting: Setting
    seed: int
    networks: tuple[nn.Sequential, ...]
    training: Examples
    shares: tuple[Examples, ...]
    evaluation: Examples
    holdout: Examples
    test: Examples

    @property
    def data(self) -> dict[str, Examples]:
        """What a fusion gets to see."""
        return {"evaluation": self.evaluation, "holdout": self.holdout}


def synthetic_mlp() -> nn.Sequential:
    """40 → 64 → 64 → 20 with ReLU between: 8,084 parameters."""
    return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 20))


def digits_mlp() -> nn.Sequential:
    """64 → 64 → 32 → 10 with ReLU between: 6,570 parameters."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def digits_cnn() -> nn.Sequential:
    """Two convolutions of 16 and 32 channels, then a linear layer: 6,090 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def _synthetic_setting(skewed: bool, same_start: bool) -> Setting:
    name = f"synthetic, {'skewed' if skewed else 'IID'}, {'same' if same_start else 'different'} initialisation"
    return Setting(name, "synthetic", synthetic_mlp, skewed, same_start, epochs=15, rate=0.003)


SETTINGS: Mapping[str, Setting] = {
    "iid-same": _synthetic_setting(skewed=False, same_start=True),
    "skewed-same": _synthetic_setting(skewed=True, same_start=True),
    "iid-different": _synthetic_setting(skewed=False, same_start=False),
    "skewed-different": _synthetic_setting(skewed=True, same_start=False),
    "digits-mlp": Setting("digits, skewed, MLP", "digits", digits_mlp, True, True, epochs=30, rate=0.01),
    "digits-cnn": Setting("digits, skewed, convolutions", "digits", digits_cnn, True, True, epochs=30, rate=0.01),
}


def load(setting: Setting, seed: int) -> Task:
    """A task; its networks come from the cache where they were trained before by this very file."""
    random = torch.Generator().manual_seed(seed)
    inputs, targets, cuts = _DATA[setting.data](random)
    order = torch.randperm(len(targets), generator=random)
    training, *others = order.split(cuts)
    places = _source_places(setting, targets, training, random)

    def part(at: Tensor) -> Examples:
        return inputs[at].contiguous(), targets[at].contiguous()

    shares = tuple(part(at) for at in places)
    evaluation, holdout, test = (part(at) for at in others)
    networks = tuple(_network(setting, seed, place, share) for place, share in enumerate(shares))
    return Task(setting, seed, networks, part(training), shares, evaluation, holdout, test)


def accuracy(network: nn.Module, examples: Examples) -> float:
    """The share of examples classified rightly, in %."""
    with torch.no_grad():
        return 100 * float((network(examples[0]).argmax(dim=1) == examples[1]).double().mean())


def _synthetic(random: torch.Generator) -> tuple[Tensor, Tensor, list[int]]:
    """x = clump's centre + noise of variance 1; a centre is drawn from a normal distribution of variance 0.81."""
    cuts = [4000, 2000, 2000, 10000]
    centres = torch.randn(_CLASSES, _CLUMPS, _FEATURES, generator=random) * 0.9
    targets = torch.randint(_CLASSES, (sum(cuts),), generator=random)
    clumps = torch.randint(_CLUMPS, (sum(cuts),), generator=random)
    inputs = centres[targets, clumps] + torch.randn(sum(cuts), _FEATURES, generator=random)
    return inputs, targets, cuts


def _digits(random: torch.Generator) -> tuple[Tensor, Tensor, list[int]]:
    del random  # the images are given; only their order is drawn
    digits = load_digits()
    inputs, targets = torch.tensor(digits.data / 16.0, dtype=torch.float32), torch.tensor(digits.target)
    return inputs, targets, [500, 300, 300, len(targets) - 1100]


_DATA: Mapping[str, Callable[[torch.Generator], tuple[Tensor, Tensor, list[int]]]] = {
    "synthetic": _synthetic,
    "digits": _digits,
}


def _source_places(setting: Setting, targets: Tensor, training: Tensor, random: torch.Generator) -> list[Tensor]:
    """Which training examples each of the two sources sees."""
    if not setting.skewed:
        return list(training.chunk(2))
    low = targets[training] < (int(targets.max()) + 1) // 2
    return [
        training[own | (torch.rand(len(training), generator=random) < _MINORITY)] for own in (low, low.logical_not())
    ]


def _network(setting: Setting, seed: int, place: int, share: Examples) -> nn.Sequential:
    # Never the data's own seed: the same draws would then give the centres of the classes and the first layer's weights.
    start = 500_000 + seed if setting.same_start else 1000 * (place + 1) + seed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start)
        network = setting.make()
    facts = asdict(setting) | {"make": setting.make.__qualname__}
    asked = hashlib.sha256(json.dumps([facts, seed, place], sort_keys=True).encode()).hexdigest()[:24]
    kept = _cache() / f"{asked}.safetensors"
    if kept.exists():
        network.load_state_dict(load_file(kept))
        return network.eval()
    _train(network, share, setting, torch.Generator().manual_seed(10 * seed + place))
    part = kept.with_suffix(f".{os.getpid()}")  # two processes may train the same network: the last rename wins
    save_file(network.state_dict(), part)
    part.rename(kept)
    return network.eval()


def _train(network: nn.Sequential, share: Examples, setting: Setting, random: torch.Generator) -> None:
    inputs, targets = share
    optimizer = torch.optim.Adam(network.parameters(), lr=setting.rate)
    for _ in range(setting.epochs):
        for batch in torch.randperm(len(targets), generator=random).split(_BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()


def _cache() -> Path:
    """A folder for networks that this version of this file trained."""
    version = hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"cogram-bench-{os.getuid()}" / version
    folder.mkdir(parents=True, exist_ok=True)
    return folder
