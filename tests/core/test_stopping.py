from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cogram_core.checkpoints.reader import CheckpointReader
from cogram_core.errors import FusionStopped
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.evaluator import BATCH
from cogram_core.evaluation.prototypes import PrototypeParams, make_prototypes
from cogram_core.evaluation.scores import calibrate, score
from cogram_core.networks.network import Network
from cogram_core.observer import SilentObserver
from cogram_core.stopping import stop_point, stoppable
from tests.core.factories import mlp, points, save_checkpoint


class Asking(SilentObserver):
    """Counts how often it is asked, and stops from the n-th time on."""

    def __init__(self, stop_at: int) -> None:
        self.asked = 0
        self._stop_at = stop_at

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked >= self._stop_at


def stops(work: Callable[[], object], stop_at: int) -> None:
    observer = Asking(stop_at)
    with stoppable(observer), pytest.raises(FusionStopped):
        work()
    assert observer.asked == stop_at


def test_outside_of_a_run_a_stop_point_does_nothing() -> None:
    stop_point()
    with stoppable(Asking(2)):
        stop_point()
    stop_point()


def test_scoring_can_be_stopped_between_batches_and_between_temperatures() -> None:
    inputs, targets = points(0, 5 * BATCH)
    network = Network(mlp(0), inputs[:1])
    stops(lambda: score(network, Dataset(inputs, targets)), 3)
    logits = network.logits(inputs)
    stops(lambda: calibrate(logits, targets), 4)


def test_clustering_can_be_stopped_between_classes_and_between_iterations() -> None:
    inputs, targets = points(0, 400)
    params = PrototypeParams(per_class=8)
    for stop_at in (1, 2, 3):
        stops(lambda: make_prototypes(Dataset(inputs, targets), params, seed=0, stage=0), stop_at)


def test_hashing_a_checkpoint_can_be_stopped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with CheckpointReader.open(save_checkpoint(tmp_path / "a", mlp(0))) as reader:
        stops(reader.digest, 1)
