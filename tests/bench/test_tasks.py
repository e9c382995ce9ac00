"""The benchmarks' data and networks: nobody sees what is kept for others, and what is kept is what was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench import tasks
from bench.tasks import SETTINGS, Task, accuracy, load


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_cache", lambda: tmp_path)


def short(name: str, epochs: int = 1, seed: int = 0) -> Task:
    return load(replace(SETTINGS[name], epochs=epochs), seed)


def rows(inputs: Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in inputs]


@pytest.mark.parametrize(
    ("name", "sizes"), [("skewed-same", (4000, 2000, 2000, 10000)), ("digits-mlp", (500, 300, 300, 697))]
)
def test_no_example_is_in_two_parts(name: str, sizes: tuple[int, ...]) -> None:
    task = short(name)
    parts = (task.training, task.evaluation, task.holdout, task.test)
    assert tuple(len(targets) for _, targets in parts) == sizes
    everything = [row for inputs, _ in parts for row in rows(inputs)]
    assert len(set(everything)) == len(everything)
    for inputs, _ in task.shares:
        assert set(rows(inputs)) <= set(rows(task.training[0]))


@pytest.mark.parametrize("name", ["skewed-same", "digits-cnn"])
def test_a_skewed_source_sees_all_of_its_half_and_about_a_tenth_of_the_others(name: str) -> None:
    task = short(name)
    targets = task.training[1]
    low = targets < (targets.max() + 1) // 2
    for (_, share), own in zip(task.shares, (low, ~low), strict=True):
        for target in targets[own].unique():
            assert int((share == target).sum()) == int((targets == target).sum())
        foreign = len(share) - int(own.sum())
        assert 0.05 < foreign / int((~own).sum()) < 0.15


def test_iid_sources_share_the_training_part_out_between_them() -> None:
    task = short("iid-same")
    one, other = (set(rows(inputs)) for inputs, _ in task.shares)
    assert one.isdisjoint(other)
    assert one | other == set(rows(task.training[0]))


@pytest.mark.parametrize(("name", "same"), [("skewed-same", True), ("skewed-different", False)])
def test_sources_that_were_not_trained_tell_whether_they_start_alike(name: str, same: bool) -> None:
    one, other = short(name, epochs=0).networks
    assert torch.equal(one[0].weight, other[0].weight) is same


def test_a_network_is_kept_under_all_that_its_training_follows_from() -> None:
    first = short("digits-mlp", epochs=1)
    longer, again = short("digits-mlp", epochs=2), short("digits-mlp", epochs=1)
    faster = load(replace(first.setting, rate=0.02), 0)
    assert torch.equal(again.networks[0][0].weight, first.networks[0][0].weight)
    for other in (longer, faster):
        assert not torch.equal(other.networks[0][0].weight, first.networks[0][0].weight)


def test_a_task_is_the_same_whether_its_networks_are_trained_or_kept(tmp_path: Path) -> None:
    trained = short("digits-mlp")
    assert len(list(tmp_path.iterdir())) == 2
    kept = short("digits-mlp")
    for one, other in zip(trained.networks, kept.networks, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_accuracy_is_the_share_of_right_answers_in_percent() -> None:
    inputs = torch.eye(4)
    assert accuracy(nn.Identity(), (inputs, torch.tensor([0, 1, 2, 0]))) == 75.0
