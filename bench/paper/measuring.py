"""What is measured. Each function takes a plain document, so that its answer can be kept under it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from bench.paper.storing import Answer, Question
from bench.tasks import SETTINGS, Examples, Task, accuracy, load
from cogram_core import fuse_modules
from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.prototypes import PrototypeParams, make_prototypes

SHORT_EPOCHS = 3
"""How long the weaker source of an uneven task was trained."""


@lru_cache(maxsize=2)
def task_of(name: str, seed: int) -> Task:
    """A task of ``bench.tasks``; ``skewed-uneven`` is ``skewed-same`` with a second source that was hardly trained."""
    if name != "skewed-uneven":
        return load(SETTINGS[name], seed)
    full = load(SETTINGS["skewed-same"], seed)
    setting = replace(full.setting, name="synthetic, skewed, uneven", epochs=SHORT_EPOCHS)
    return replace(full, setting=setting, networks=(full.networks[0], load(setting, seed).networks[1]))


def sources(question: Question) -> Answer:
    """Each source by itself.

    Args:
        question: ``setting``, ``seed``.

    Returns:
        ``test``: accuracy in %; ``own``: that on the classes that it saw most of; ``loss``: on the evaluation data, in nats.
    """
    task = task_of(question["setting"], question["seed"])
    return {
        "test": [accuracy(network, task.test) for network in task.networks],
        "own": [accuracy(network, _own(task, place)) for place, network in enumerate(task.networks)],
        "loss": [_loss(network, task.evaluation) for network in task.networks],
    }


def fusion(question: Question) -> Answer:
    """Fuses a task's sources.

    Args:
        question: ``setting``, ``seed``, ``stages``, ``guard``.

    Returns:
        ``test``: accuracy in %; ``own``: that on each source's own classes; ``holdout``: calibrated loss in nats;
        ``shares``: each source's mean share over CoGraM's decisions; ``decisions`` and how many were ``accepted``;
        ``cpu_seconds``.
    """
    task = task_of(question["setting"], question["seed"])
    began = time.process_time()
    fused, trace = _fused(task, question["stages"], question["guard"])
    spent = time.process_time() - began
    decided = [decision for decision in trace.decisions() if decision.method == "cogram"]
    shares = [decision.shares for decision in decided if decision.shares is not None]
    verdict = trace.metadata["verdict"]
    written = next(one for one in reversed(verdict["candidates"]) if one["label"] == verdict["written"]["label"])
    return {
        "test": accuracy(fused, task.test),
        "own": [accuracy(fused, _own(task, place)) for place in range(len(task.networks))],
        "holdout": written["holdout"]["calibrated_loss"],
        "shares": [math.fsum(share) / len(shares) for share in zip(*shares, strict=True)],
        "decisions": len(decided),
        "accepted": sum(decision.action == "merged" for decision in decided),
        "cpu_seconds": spent,
    }


def training(question: Question) -> Answer:
    """Fuses, then fine-tunes on the whole training part; test accuracy in % after some epochs.

    Shorter runs repeat the beginning of longer ones, so each point of a curve is a run of its own.

    Args:
        question: ``setting``, ``seed``, ``stages``, ``kickoff`` (epochs), ``epochs`` (a list: after how many to look,
            those of the kickoff not counted), ``lr``, ``batch_size``.
    """
    task = task_of(question["setting"], question["seed"])
    fused, _ = _fused(task, question["stages"], "report")
    curve = []
    for epochs in question["epochs"]:
        curve.append(accuracy(_trained(fused, task, question, epochs), task.test))
    return {"test": curve}


def correlations(question: Question) -> Answer:
    """How well prototypes tell which source's neuron is better on test data.

    For each neuron u of the Fisher average M: L(M[u ← S₂[u]]) − L(M[u ← S₁[u]]), on the prototypes and on test data.

    Args:
        question: ``setting``, ``seed``, ``prototypes`` (a list of their parameters).

    Returns:
        ``loss``: Pearson's correlation of the differences on each set of prototypes with those of the test loss;
        ``accuracy``: with those of the share of test examples that are classified wrongly.
    """
    task = task_of(question["setting"], question["seed"])
    start, _ = _fused(task, ["fisher"], "report")
    effect = _differences(start, task.networks, task.test)
    evaluation = Dataset(*task.evaluation)
    found: Answer = {"loss": [], "accuracy": []}
    for params in question["prototypes"]:
        made = make_prototypes(evaluation, PrototypeParams(**params), seed=0, stage=1)
        seen = _differences(start, task.networks, (made.inputs, made.targets))
        for place, name in enumerate(("loss", "accuracy")):
            found[name].append(float(torch.corrcoef(torch.stack([seen[:, 0], effect[:, place]]))[0, 1]))
    return found


def _fused(task: Task, stages: Sequence[Any], guard: Any) -> Any:
    return fuse_modules(task.networks, stages=stages, data=task.data, guard=guard, threads=1)


def _trained(network: nn.Module, task: Task, question: Question, epochs: int) -> nn.Module:
    if not epochs and not question["kickoff"]:
        return network
    stage = {
        "method": "finetune",
        "kickoff_epochs": question["kickoff"],
        "kickoff_scale": 2.5,
        "epochs": epochs,
        "lr": question["lr"],
        "batch_size": question["batch_size"],
    }
    data = {"training": task.training}
    # The mean of a network with itself is that network, so this is the stage by itself.
    return fuse_modules([network, network], stages=["linear", stage], data=data, guard="off", threads=1).module


def _own(task: Task, place: int) -> Examples:
    """Test examples of the half of the classes of which a source saw most; all where sources are not skewed."""
    inputs, targets = task.test
    if not task.setting.skewed:
        return task.test
    classes = torch.bincount(task.shares[place][1], minlength=int(targets.max()) + 1)
    others = torch.bincount(task.shares[1 - place][1], minlength=len(classes))
    own = (classes > others)[targets]
    return inputs[own], targets[own]


@torch.no_grad()
def _differences(start: nn.Module, networks: Sequence[nn.Module], examples: Examples) -> Tensor:
    """Second source minus first, neuron by neuron: mean loss in nats, and the share classified wrongly; (U, 2)."""
    network = copy.deepcopy(start)
    found = []
    for weight, bias, others in _neurons(network, networks):
        for row in range(len(weight)):
            kept = weight[row].clone(), bias[row].clone()
            scores = []
            for other_weight, other_bias in others:
                weight[row], bias[row] = other_weight[row], other_bias[row]
                scores.append(_scored(network, examples))
            weight[row], bias[row] = kept
            found.append(scores[1] - scores[0])
    return torch.stack(found)


def _neurons(
    network: nn.Module, networks: Sequence[nn.Module]
) -> Iterator[tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]]:
    """Weight (rows, …) and bias (rows) of each layer, and those of the sources."""
    states = [other.state_dict() for other in networks]
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            others = [(state[f"{name}.weight"], state[f"{name}.bias"]) for state in states]
            yield module.weight, module.bias, others


@torch.no_grad()
def _loss(network: nn.Module, examples: Examples) -> float:
    return float(_scored(network, examples)[0])


def _scored(network: nn.Module, examples: Examples) -> Tensor:
    """Mean cross-entropy and the share classified wrongly, (2)."""
    scores = network(examples[0])
    loss = nn.functional.cross_entropy(scores.double(), examples[1])
    return torch.stack([loss, (scores.argmax(dim=1) != examples[1]).double().mean()])
