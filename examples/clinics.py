"""Two clinics with skewed data: the task behind the demo and its benchmarks.

scikit-learn's handwritten digits (1,797 images of 8 × 8) are cut into training, evaluation, holdout and test parts. Clinic A
trains on most of 0–4 and a tenth of 5–9, clinic B the other way round; both start from the same weights.

`python -m examples.clinics FOLDER` writes the checkpoints and the data into a new folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

Examples = tuple[Tensor, Tensor]
_EPOCHS = 30
_MINORITY = 0.1


@dataclass(frozen=True)
class Clinics:
    """The two trained networks and the data that neither was trained on."""

    networks: tuple[nn.Module, nn.Module]
    evaluation: Examples
    holdout: Examples
    test: Examples


def mlp() -> nn.Sequential:
    """64 → 64 → 32 → 10 with ReLU between: 6,570 parameters."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def train_clinics(seed: int, make: Callable[[], nn.Module] = mlp) -> Clinics:
    """Cuts the data, trains both clinics' networks. One seed, one result."""
    random = torch.Generator().manual_seed(seed)
    digits = load_digits()
    inputs = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    targets = torch.tensor(digits.target)
    order = torch.randperm(len(targets), generator=random)
    training, evaluation, holdout, test = order.split([900, 300, 250, len(targets) - 1450])
    torch.manual_seed(seed)
    start = make().state_dict()
    networks = []
    for low_digits in (True, False):
        own = (targets[training] < 5) == low_digits
        kept = training[own | (torch.rand(len(training), generator=random) < _MINORITY)]
        network = make()
        network.load_state_dict(start)
        _train(network, inputs[kept], targets[kept], random)
        networks.append(network.eval())

    def part(places: Tensor) -> Examples:
        return inputs[places].contiguous(), targets[places].contiguous()

    return Clinics((networks[0], networks[1]), part(evaluation), part(holdout), part(test))


def _train(network: nn.Module, inputs: Tensor, targets: Tensor, random: torch.Generator) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(_EPOCHS):
        for batch in torch.randperm(len(targets), generator=random).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[batch]), targets[batch]).backward()
            optimizer.step()


def accuracy(network: nn.Module, examples: Examples) -> float:
    """The share of examples classified rightly."""
    with torch.no_grad():
        return float((network(examples[0]).argmax(dim=1) == examples[1]).double().mean())


def save(clinics: Clinics, folder: Path) -> None:
    """Writes what a service needs: two checkpoints, evaluation and holdout data, and the test data for whoever checks."""
    for name, network in zip(("clinic-a", "clinic-b"), clinics.networks, strict=True):
        (folder / name).mkdir(parents=True)
        save_file(network.state_dict(), folder / name / "model.safetensors", metadata={"format": "pt"})
    for name, (inputs, targets) in {
        "evaluation": clinics.evaluation,
        "holdout": clinics.holdout,
        "test": clinics.test,
    }.items():
        save_file({"inputs": inputs, "targets": targets}, folder / f"{name}.safetensors")


def main() -> None:
    """Writes everything into the folder named on the command line."""
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit("usage: python -m examples.clinics FOLDER, with a folder that does not exist yet")
    torch.set_num_threads(1)
    save(train_clinics(seed=0), Path(sys.argv[1]))
    print(f"{sys.argv[1]}: clinic-a/, clinic-b/, evaluation, holdout and test data")


if __name__ == "__main__":
    main()
