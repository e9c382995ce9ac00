"""AdaMerging: how much of each source's change goes in, layer by layer, is learned from how sure the network gets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from cogram_core.errors import DatasetError, Problem
from cogram_core.evaluation.datasets import Dataset
from cogram_core.methods.contract import Field, MethodParams, NetworkMethod, StageContext
from cogram_core.mixing import SCALAR_BITS, add_task_vectors, round_shares
from cogram_core.networks.network import Network
from cogram_core.seeding import generator
from cogram_core.stopping import stop_point


class Params(MethodParams):
    """Parameters of ``adamerging``."""

    granularity: Literal["layer", "task"] = Field(
        "layer", description="a coefficient for each source and layer, or one for each source"
    )
    start: float = Field(0.3, ge=-10, le=10, description="λ₀: what all coefficients start from")
    steps: int = Field(500, ge=1, le=1_000_000, description="steps of Adam")
    lr: float = Field(
        1e-3, gt=0, le=10, description="Adam's rate: about how far a coefficient moves in one step, at most"
    )
    batch_size: int = Field(
        32, ge=1, le=2**24, description="examples a step, of each source's data where these have own"
    )


def run(context: StageContext, params: Params) -> None:
    """θ_l = θ₀_l + Σᵢ λ_il (θ_il − θ₀_l) for each layer l, with the λ that make predictions surest.

    λ minimises the mean entropy −Σ_c p_c ln p_c of the predictions on the evaluation data, or averaged over the sources' own
    where they have some, by Adam with λ_il = λ₀ at first. Targets are not looked at. Batches come from permutations of the
    examples by ``seeding.generator(seed, stage, "adamerging", set, epoch)``. The gradient by λ_il is the product of the
    loss's gradient by θ_l and source i's change, so that one backward pass a step gives all. λ is rounded to multiples of
    2⁻¹⁶ in the end and stands in the trace, where losses are entropies before the first step and after that rounding. Where
    a gradient isn't finite the steps end. Statistics of normalisation layers have none and get the weighted mean.

    Memory: beside the network, the base, one change a source and two gradients, each as large as the network's parameters.

    Raises:
        DatasetError: if the data asks for values or tokens, not classes.

    Source: Yang et al. 2024, arXiv:2310.02575, eq. 5 to 7.
    """
    if context.restore(len(context.network.names)) is None:
        _merge(context, params)
    context.milestone("merged")


def _merge(context: StageContext, params: Params) -> None:
    sets = _data(context)
    weights = [source.weight for source in context.sources]
    mean = round_shares([weight / math.fsum(weights) for weight in weights])
    for name in context.network.names:
        context.network.tensor(name).copy_(_merged(context, name, mean))
    search = _Search(context, params)
    before = search.entropy(sets)
    taken = search.descend(sets)
    found = {name: search.coefficients(name) for name in context.network.parameters}
    for name, coefficients in found.items():
        context.network.tensor(name).copy_(_merged(context, name, coefficients))
    after = search.entropy(sets)
    reason = f"{params.granularity} coefficients after {taken} steps"
    reason += "" if taken == params.steps else ": the next gradient isn't finite"
    for name in context.network.names:
        learned = name in found
        context.record(
            layer=name,
            kind="tensor",
            action="merged",
            shares=found[name] if learned else mean,
            loss_before=before if learned else None,
            loss_after=after if learned else None,
            reason=reason if learned else "weighted mean: no gradient reaches it",
        )


def _merged(context: StageContext, name: str, coefficients: Sequence[float]) -> Tensor:
    """As a replay computes it."""
    assert context.base is not None  # the recipe's rules see to it
    return add_task_vectors(context.base.read(name), (source.read(name) for source in context.sources), coefficients)


def _data(context: StageContext) -> list[Dataset]:
    """The sources' own data, each set once, or else the evaluation data."""
    used = [source.data or context.evaluation_data() for source in context.sources]
    sets = list({id(dataset): dataset for dataset in used}.values())
    wrong = {"mean_squared_error": "values", "causal_lm": "tokens"}
    problems = [
        Problem(
            "data.evaluation" if dataset is context.evaluation else "sources.data",
            "dataset.no_entropy",
            f"asks for {wrong[dataset.loss]}, and adamerging goes by the entropy of class scores; give classes as targets",
        )
        for dataset in sets
        if dataset.loss in wrong
    ]
    if problems:
        raise DatasetError(problems)
    return sets


class _Search:
    """The coefficients on their way, and the network that they make."""

    def __init__(self, context: StageContext, params: Params) -> None:
        """Reads the base and the sources' changes of all parameters into memory."""
        assert context.base is not None
        self._context, self._params = context, params
        self._network = context.network
        names = self._network.parameters
        self._base = {name: context.base.read(name) for name in names}
        self._changes = {name: [s.read(name).sub_(self._base[name]) for s in context.sources] for name in names}
        self._group = _groups(self._network, params.granularity)
        groups = max(self._group.values(), default=-1) + 1
        self._values = torch.full((len(context.sources), groups), params.start, dtype=torch.float64)
        self._assign()

    def coefficients(self, name: str) -> tuple[float, ...]:
        """λ of a parameter, one a source, rounded."""
        unit = 1 << SCALAR_BITS
        return tuple(round(value * unit) / unit for value in self._values[:, self._group[name]].tolist())

    def entropy(self, sets: Sequence[Dataset]) -> float:
        """The mean entropy of the network's predictions over a set, in nats; the mean over sets."""
        means = []
        for dataset in sets:
            parts = []
            for inputs in torch.split(dataset.inputs, self._params.batch_size):
                stop_point()
                parts.append(entropies(self._network.logits(inputs)))
            means.append(float(torch.cat(parts).mean()))
        return math.fsum(means) / len(means)

    def descend(self, sets: Sequence[Dataset]) -> int:
        """Takes the steps; how many were taken before one had no finite gradient."""
        adam = torch.optim.Adam([self._values], lr=self._params.lr, foreach=False)
        drawn = [self._batches(dataset, place) for place, dataset in enumerate(sets)]
        for step in range(self._params.steps if self._values.numel() else 0):
            gradient = self._gradient([next(batches) for batches in drawn])
            if not bool(torch.isfinite(gradient).all()):
                return step
            self._values.grad = gradient
            adam.step()
            self._assign()
            self._context.progress(step + 1, self._params.steps)
        return self._params.steps

    def _assign(self) -> None:
        for name, base in self._base.items():
            values = self._values[:, self._group[name]].tolist()
            # Changes among themselves first, so that two sources may be swapped.
            parts = [change * value for change, value in zip(self._changes[name], values, strict=True)]
            self._network.tensor(name).copy_(base + reduce(torch.add, parts))

    def _gradient(self, batches: Sequence[Tensor]) -> Tensor:
        """Of the mean over batches of their mean entropy by the coefficients, float64, (sources, groups)."""
        leaves = {name: self._network.tensor(name).requires_grad_() for name in self._base}
        total = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        for inputs in batches:
            loss = entropies(self._network.outputs(leaves, inputs)).mean() / len(batches)
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, tuple(leaves.values()), materialize_grads=True)
                for gradient, tensor in zip(gradients, total.values(), strict=True):
                    tensor.add_(gradient)
        found = torch.zeros_like(self._values)
        for name, gradient in total.items():
            for place, change in enumerate(self._changes[name]):
                found[place, self._group[name]] += float((gradient * change).sum(dtype=torch.float64))
        return found

    def _batches(self, dataset: Dataset, place: int) -> Iterator[Tensor]:
        epoch = 0
        while True:
            keys = (self._context.info.index, "adamerging", place, epoch)
            order = generator(self._context.seed, *keys).permutation(len(dataset))
            for chosen in torch.split(torch.from_numpy(order), self._params.batch_size):
                yield dataset.inputs[chosen.to(dataset.inputs.device)]
            epoch += 1


def _groups(network: Network, granularity: str) -> dict[str, int]:
    """Which coefficient each parameter goes by."""
    if granularity == "task":
        return dict.fromkeys(network.parameters, 0)
    known = set(network.parameters)
    layers = [tensors for layer in network.layers if (tensors := [name for name in layer.tensors if name in known])]
    return {name: place for place, tensors in enumerate(layers) for name in tensors}


def entropies(scores: Tensor) -> Tensor:
    """−Σ_c p_c ln p_c of each prediction p = softmax(z), in nats; float64 (N,) for z of shape (N, C)."""
    logarithms = torch.log_softmax(scores.double(), dim=1)
    return -(logarithms.exp() * logarithms).sum(dim=1)


METHOD = NetworkMethod(name="adamerging", params=Params, run=run, kind="merging", needs_base=True)
