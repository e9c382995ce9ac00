"""Fine-tuning: gradient steps on training data after the fusion, the first epochs at a larger rate (gradient kickoff)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cogram_core.evaluation.datasets import Dataset
from cogram_core.evaluation.losses import IGNORED, example_losses, weighted_mean
from cogram_core.methods.contract import Field, MethodParams, NetworkMethod, StageContext
from cogram_core.networks.network import Network
from cogram_core.payload import pack_values
from cogram_core.seeding import generator
from cogram_core.stopping import stop_point
from cogram_core.trace import Action


class Params(MethodParams):
    """Parameters of ``finetune``."""

    kickoff_epochs: int = Field(
        8, ge=0, le=100_000, description="epochs at lr × kickoff_scale before the others; 0: none"
    )
    kickoff_scale: float = Field(2.5, gt=0, le=1e6, description="how much larger the rate of the kickoff is")
    epochs: int = Field(20, ge=0, le=100_000, description="epochs at lr after the kickoff")
    # The usual rate of Adam. Small networks gain a little by 3e-3, large pre-trained ones ask for 1e-5 to 1e-4.
    lr: float = Field(1e-3, gt=0, le=1e3, description="Adam's rate: about how far a weight moves in one step, at most")
    batch_size: int = Field(32, ge=1, le=2**24, description="examples a step; an epoch's last step takes what is left")


@dataclass(frozen=True)
class _Phase:
    """Epochs at one rate; ``first`` is the number of the first one, counted from the stage's start."""

    name: str
    first: int
    epochs: int
    lr: float


def run(context: StageContext, params: Params) -> None:
    """θ ← θ − lr · m̂ / (√v̂ + ε) with Adam's running means m of the gradient and v of its square.

    ``kickoff_epochs`` epochs at lr × kickoff_scale, then ``epochs`` at lr, over all training examples in a new order each:
    the permutation of ``seeding.generator(seed, stage, "finetune", epoch)``. The loss is the data's. Adam's means start
    anew with each of the two phases, so that a phase is a function of the network that it starts from. The network stays
    in evaluation mode: statistics of normalisation are used as they stand and not updated, and dropout does nothing.
    A phase that ends in numbers that are not finite is undone as a whole.

    Source: gradient kickoff, arXiv:2512.03610; Adam, Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.
    """
    if not context.network.parameters:
        return
    phases = (
        _Phase("kickoff", 0, params.kickoff_epochs, params.lr * params.kickoff_scale),
        _Phase("fine-tuning", params.kickoff_epochs, params.epochs, params.lr),
    )
    loss = None
    for phase in phases:
        if phase.epochs:
            known = _restored(context, phase)
            loss = _carry_out(context, params, phase, loss) if known is None else known


def _restored(context: StageContext, phase: _Phase) -> float | None:
    """The training loss after a phase that an earlier run has recorded whole; None where there is no such record."""
    last = context.restore(len(context.network.parameters))
    if last is None:
        return None
    if last.action == "trained":
        context.milestone(phase.name)
    return last.loss_after


def _carry_out(context: StageContext, params: Params, phase: _Phase, before: float | None) -> float:
    """One phase: trained and recorded, or undone; the training loss afterwards."""
    network, data = context.network, context.training_data()
    before = mean_loss(network, data, params.batch_size) if before is None else before
    kept = {name: network.tensor(name).clone() for name in network.parameters}
    obstacle = _train(context, params, phase, data)
    after = before if obstacle else mean_loss(network, data, params.batch_size)
    if obstacle is None and not math.isfinite(after):
        obstacle = "it diverged, its training loss is not finite; lower lr"
    if obstacle is None:
        _record(context, "trained", f"{phase.name}: {phase.epochs} epochs at rate {phase.lr:g}", before, after)
        context.milestone(phase.name)
        return after
    for name, tensor in kept.items():
        network.tensor(name).copy_(tensor)
    _record(context, "rolled_back", f"{phase.name} is undone: {obstacle}", before, before)
    return before


def _record(context: StageContext, action: Action, reason: str, before: float, after: float) -> None:
    """A row a tensor; with the values where they are new."""
    for name in context.network.parameters:
        stop_point()
        payload = pack_values(context.network.tensor(name)) if action == "trained" else None
        context.record(
            layer=name,
            kind="tensor",
            action=action,
            loss_before=before,
            loss_after=after,
            reason=reason,
            payload=payload,
        )


def _train(context: StageContext, params: Params, phase: _Phase, data: Dataset) -> str | None:
    """Trains the network in place; why it could not, as soon as a parameter is not finite at an epoch's end."""
    # Of their own, but in the network's memory: the network itself never asks for gradients.
    leaves = {name: context.network.tensor(name).requires_grad_() for name in context.network.parameters}
    values = tuple(leaves.values())
    adam = torch.optim.Adam(values, lr=phase.lr, foreach=False)
    for epoch in range(phase.first, phase.first + phase.epochs):
        for batch in _batches(data, context, params.batch_size, epoch):
            loss = _loss(context.network, leaves, batch)
            if not loss.requires_grad:
                return "no gradient reaches a parameter"
            gradients = torch.autograd.grad(loss, values, materialize_grads=True)
            for value, gradient in zip(values, gradients, strict=True):
                value.grad = gradient
            adam.step()
            stop_point()
        context.progress(epoch + 1, params.kickoff_epochs + params.epochs)
        for name, leaf in leaves.items():
            if not bool(torch.isfinite(leaf).all()):
                return f"it diverged, {name} is not finite after epoch {epoch - phase.first + 1}; lower lr"
    return None


def _batches(data: Dataset, context: StageContext, size: int, epoch: int) -> Iterator[Dataset]:
    order = generator(context.seed, context.info.index, "finetune", epoch).permutation(len(data))
    for places in torch.split(torch.from_numpy(order).to(data.targets.device), size):
        yield data.take(places)


def _loss(network: Network, leaves: Mapping[str, Tensor], batch: Dataset) -> Tensor:
    """The mean loss of a batch in the compute dtype, with a gradient for ``leaves``; of tokens the mean over tokens."""
    outputs = network.outputs(leaves, batch.inputs)
    match batch.loss:
        case "cross_entropy":
            return nn.functional.cross_entropy(outputs, batch.targets)
        case "mean_squared_error":
            values = batch.targets.to(outputs.dtype)
            return nn.functional.mse_loss(outputs.reshape(len(values), -1), values.reshape(len(values), -1))
        case "causal_lm":
            logits, following = outputs[:, :-1].flatten(0, 1), batch.targets[:, 1:].flatten()
            return nn.functional.cross_entropy(logits, following, ignore_index=IGNORED)


def mean_loss(network: Network, data: Dataset, batch_size: int) -> float:
    """The loss on all of ``data``, in float64; it holds the outputs of ``batch_size`` examples at once, no more."""
    parts = []
    for inputs, targets in zip(
        torch.split(data.inputs, batch_size), torch.split(data.targets, batch_size), strict=True
    ):
        stop_point()
        parts.append(example_losses(data.loss, network.logits(inputs), targets))
    return weighted_mean(torch.cat(parts), data.weights)


METHOD = NetworkMethod(name="finetune", params=Params, run=run, kind="training")
