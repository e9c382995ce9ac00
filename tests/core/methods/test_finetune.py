"""Fine-tuning, against plain torch: its own Adam, its own loop, the batches as the method's description says."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cogram_core import fuse_modules
from cogram_core.determinism import repeatable
from cogram_core.errors import FusionStopped
from cogram_core.modules import FusedModule
from cogram_core.trace import Decision
from tests.core.factories import Pair, conv_net, initialise, mlp, points, random
from tests.core.pipeline.recording import Recording

SHORT = {"method": "finetune", "kickoff_epochs": 2, "kickoff_scale": 3.0, "epochs": 3, "lr": 0.01, "batch_size": 7}


PHASES = [(range(2), 0.01 * 3.0), (range(2, 5), 0.01)]


def dropping(seed: int) -> nn.Module:
    """For inputs (6), with dropout, which must do nothing."""
    network = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Dropout(0.5), nn.LayerNorm(9), nn.Linear(9, 4))
    return initialise(network, seed)


def deep(seed: int) -> nn.Module:
    """Five linear layers: weights of 1e9 overflow."""
    return mlp(seed, (6, 8, 8, 8, 8, 4))


def examples(build: Any = mlp, seed: int = 5) -> Pair:
    return points(seed, 40, (1, 4, 4), 3) if build is conv_net else points(seed, 40)


def tuned(modules: Sequence[nn.Module], training: Pair, *more: Any, **options: Any) -> FusedModule:
    """The plain mean of networks, fine-tuned as stage 1."""
    stages = ["linear", *(more or [SHORT])]
    return fuse_modules(modules, stages=stages, data={"training": training}, **{"guard": "off", **options})


def order(seed: int, stage: int, epoch: int, count: int) -> Tensor:
    """The permutation of an epoch, from the description of the seeding alone."""
    digest = hashlib.sha256(f"{seed}/{stage}/finetune/{epoch}".encode()).digest()
    random = np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(random.permutation(count))


def naive(
    start: nn.Module,
    data: Pair,
    phases: Sequence[tuple[range, float]],
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> list[nn.Module]:
    """Copies after each of the phases, which have epochs and a rate, in stage 1 with batches of 7."""
    network = copy.deepcopy(start).eval()
    found = []
    with repeatable(1, torch.device("cpu")):
        for epochs, rate in phases:
            adam = torch.optim.Adam(network.parameters(), lr=rate, foreach=False)
            for epoch in epochs:
                for places in order(seed, 1, epoch, len(data[1])).split(7):
                    adam.zero_grad()
                    loss(network(data[0][places]), data[1][places]).backward()
                    adam.step()
            found.append(copy.deepcopy(network))
    return found


def mean(modules: Sequence[nn.Module]) -> nn.Module:
    return fuse_modules(modules, stages=["linear"], compute_dtype="float64").module


def rows(result: FusedModule) -> list[Decision]:
    return [decision for decision in result.trace.decisions() if decision.stage == 1]


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("build", [mlp, conv_net, dropping])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_adam_over_shuffled_batches_first_at_the_rate_of_the_kickoff(build: Any, dtype: torch.dtype) -> None:
    modules = [build(seed).to(dtype) for seed in (1, 2)]
    inputs, targets = examples(build)
    data = inputs.to(dtype), targets
    result = tuned(modules, data, seed=11, compute_dtype=str(dtype).removeprefix("torch."))
    _, expected = naive(mean(modules), data, PHASES, seed=11)
    assert_same(result.module, expected)


def test_values_are_learnt_by_their_mean_squared_error() -> None:
    modules, (inputs, _) = [mlp(1), mlp(2)], examples()
    data = inputs, torch.randn(40, 4, generator=random(3))
    _, expected = naive(mean(modules), data, PHASES, loss=nn.functional.mse_loss)
    assert_same(tuned(modules, data).module, expected)


def test_token_labels_are_learnt_shifted_by_one_and_without_those_ignored() -> None:
    def language(seed: int) -> nn.Module:
        return initialise(nn.Sequential(nn.Embedding(5, 6), nn.GELU(), nn.Linear(6, 5)), seed)

    def shifted(scores: Tensor, labels: Tensor) -> Tensor:
        """The mean over all tokens of the batch, one by one."""
        wanted = [(b, t) for b in range(len(labels)) for t in range(1, labels.shape[1]) if labels[b, t] >= 0]
        rows, places = zip(*wanted, strict=True)
        chosen = scores.log_softmax(2)[list(rows), [place - 1 for place in places]]
        return -chosen.gather(1, labels[list(rows), list(places)][:, None]).mean()

    modules = [language(1), language(2)]
    tokens = torch.randint(0, 5, (40, 7), generator=random(3))
    labels = torch.where(torch.rand(40, 7, generator=random(4)) < 0.3, -100, tokens)
    labels[:, 3] = tokens[:, 3]
    _, expected = naive(mean(modules), (tokens, labels), PHASES, loss=shifted)
    found = tuned(modules, (tokens, labels)).module.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name


class Odd(nn.Module):
    """Has a layer that nothing uses; cut off from gradients altogether if asked."""

    def __init__(self, seed: int, cut: bool) -> None:
        super().__init__()
        self.used, self.unused, self._cut = nn.Linear(6, 4), nn.Linear(2, 2), cut
        initialise(self, seed)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.used(inputs)
        return found.detach() if self._cut else found


def test_a_tensor_that_no_gradient_reaches_stays_and_a_network_without_any_is_said() -> None:
    data = examples()
    start = mean([Odd(1, False), Odd(2, False)])
    moved = tuned([Odd(1, False), Odd(2, False)], data).module.state_dict()
    same = [name for name, tensor in start.state_dict().items() if torch.equal(moved[name], tensor)]
    assert same == ["unused.weight", "unused.bias"]
    result = tuned([Odd(1, True), Odd(2, True)], data)
    assert_same(result.module, start)
    assert {d.reason for d in rows(result)} >= {"kickoff is undone: no gradient reaches a parameter"}


def test_without_a_kickoff_all_epochs_go_at_one_rate() -> None:
    modules, data = [mlp(1), mlp(2)], examples()
    result = tuned(modules, data, SHORT | {"kickoff_epochs": 0})
    assert_same(result.module, naive(mean(modules), data, [(range(3), 0.01)])[-1])
    result = tuned(modules, data, SHORT | {"epochs": 0})
    assert_same(result.module, naive(mean(modules), data, [(range(2), 0.03)])[-1])
    result = tuned(modules, data, SHORT | {"epochs": 0, "kickoff_epochs": 0})
    assert_same(result.module, mean(modules))
    assert rows(result) == []


def test_the_same_seed_gives_the_same_bytes_and_another_one_others() -> None:
    modules, data = [mlp(1), mlp(2)], examples()
    first = tuned(modules, data, seed=3)
    torch.manual_seed(99)
    assert_same(tuned(modules, data, seed=3).module, first.module)
    other = tuned(modules, data, seed=4).module.state_dict()
    assert any(not torch.equal(other[name], tensor) for name, tensor in first.module.state_dict().items())


def test_the_trace_has_the_values_of_each_phase_and_the_losses_around_it() -> None:
    modules, data = [conv_net(1), conv_net(2)], examples(conv_net)
    start = mean(modules)
    after = naive(start, data, [(range(2), 0.03), (range(2, 5), 0.01)])
    losses = [float(nn.functional.cross_entropy(m(data[0]).detach().double(), data[1])) for m in (start, *after)]
    found = rows(tuned(modules, data))
    names = [name for name, _ in start.named_parameters()]
    assert [decision.layer for decision in found] == names * 2
    for place, decision in enumerate(found):
        phase = place // len(names)
        assert (decision.action, decision.kind, decision.shares) == ("trained", "tensor", None)
        assert decision.loss_before == pytest.approx(losses[phase], rel=1e-6)
        assert decision.loss_after == pytest.approx(losses[phase + 1], rel=1e-6)
        values = after[phase].state_dict()[decision.layer].numpy()
        assert decision.payload == values.astype("<f4").tobytes()
        assert ("kickoff: 2 epochs", "fine-tuning: 3 epochs")[phase] in decision.reason
    assert losses[2] < losses[0]


def test_a_kickoff_that_diverges_is_undone_and_said_and_the_rest_goes_on() -> None:
    modules, data = [deep(1), deep(2)], examples()
    start = mean(modules)
    result = tuned(modules, data, SHORT | {"kickoff_scale": 1e6, "lr": 1e3})
    _, expected = naive(start, data, [(range(0), 1.0), (range(2, 5), 1e3)])
    assert all(torch.isfinite(tensor).all() for tensor in expected.state_dict().values())
    assert_same(result.module, expected)
    names = [name for name, _ in start.named_parameters()]
    found = rows(result)
    assert [(d.layer, d.action) for d in found] == [(n, a) for a in ("rolled_back", "trained") for n in names]
    assert "kickoff is undone: it diverged, 0.weight is not finite after epoch 1; lower lr" in found[0].reason
    assert found[0].payload is None
    assert found[0].loss_before == found[-1].loss_before


def test_a_training_that_diverges_throughout_leaves_the_network_as_it_was() -> None:
    modules = [initialise(deep(seed), seed, 100.0) for seed in (1, 2)]
    inputs, targets = examples()
    result = tuned(modules, (inputs * 1e37, targets))
    assert [decision.action for decision in rows(result)] == ["rolled_back"] * 20
    assert_same(result.module, mean(modules))


def test_a_network_without_trainable_tensors_is_left_alone() -> None:
    def still(seed: int) -> nn.Module:
        return initialise(nn.Sequential(nn.BatchNorm1d(6, affine=False)), seed)

    modules = [still(1), still(2)]
    result = tuned(modules, points(5, 40, (6,), 6))
    assert rows(result) == []
    assert_same(result.module, mean(modules))


def test_training_on_wrong_labels_loses_to_the_network_before_it() -> None:
    inputs, targets = points(5, 200)
    good = [copy.deepcopy(naive(mlp(1), (inputs, targets), [(range(30), 0.01)])[-1]) for _ in range(2)]
    data = {"training": (inputs, (targets + 1) % 4), "holdout": points(6, 200)}
    result = fuse_modules(good, stages=["linear", SHORT], data=data)
    verdict = result.trace.metadata["verdict"]
    labels = [candidate["label"] for candidate in verdict["candidates"]]
    assert labels[-3:] == ["linear: merged", "finetune: kickoff", "finetune: fine-tuning"]
    losses = [candidate["holdout"]["calibrated_loss"] for candidate in verdict["candidates"]]
    assert losses[-1] > losses[-3] + 0.1
    assert verdict["written"]["label"] == "linear: merged"
    assert_same(result.module, good[0])
    reported = fuse_modules(good, stages=["linear", SHORT], data=data, guard="report")
    worse = float(nn.functional.cross_entropy(reported.module(points(6, 200)[0]).detach(), points(6, 200)[1]))
    assert worse == pytest.approx(verdict["candidates"][-1]["holdout"]["loss"], rel=1e-5)


def test_progress_counts_epochs_over_both_phases() -> None:
    observer = Recording()
    tuned([mlp(1), mlp(2)], examples(), observer=observer)
    told = [call[2:] for call in observer.calls if call[0] == "progress" and call[1].method == "finetune"]
    assert told == [(epoch, 5) for epoch in range(1, 6)]


def test_it_can_be_stopped_between_any_two_batches() -> None:
    modules, data = [mlp(1), mlp(2)], examples()
    observer = Recording()
    tuned(modules, data, observer=observer)
    before = Recording()
    fuse_modules(modules, stages=["linear"], observer=before)
    assert observer.asked - before.asked >= 5 * math.ceil(40 / 7)
    for stop_at in range(before.asked, before.asked + 20, 6):
        with pytest.raises(FusionStopped):
            tuned(modules, data, observer=Recording(stop_at))
