from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from cogram_core.determinism import repeatable
from cogram_core.evaluation.datasets import Dataset
from cogram_core.networks.network import Network
from cogram_core.seeding import generator
from cogram_core.statistics import fisher as module_under_test
from cogram_core.statistics import fisher_batches, fisher_gradients
from cogram_core.statistics.fisher import diagonal_fisher
from cogram_core.statistics.fisher_directions import Estimator, resolved
from tests.core.factories import initialise, mlp, points, random

pytestmark = pytest.mark.usefixtures("as_in_a_run")
Fisher = dict[str, Tensor]
Pulls = Callable[[Tensor, int], Iterator[Tensor]]
"""Directions in one example's output (...): of the outputs' shape, from the output and the example's number."""


@pytest.fixture
def as_in_a_run() -> Iterator[None]:
    with repeatable(1, torch.device("cpu")):
        yield


def naive(module: nn.Module, inputs: Tensor, pulls: Pulls) -> Fisher:
    """E_x Σ_r (∇ ⟨d_r, z⟩)², one example and direction after the other."""
    named = {name: value.requires_grad_() for name, value in module.named_parameters()}
    total = {name: torch.zeros_like(value) for name, value in named.items()}
    for number, example in enumerate(inputs):
        output = module(example[None])[0]
        for pull in pulls(output.detach(), number):
            found = torch.autograd.grad(
                output, list(named.values()), pull, retain_graph=True, materialize_grads=True, allow_unused=True
            )
            for name, gradient in zip(named, found, strict=True):
                total[name] += gradient**2 / len(inputs)
    return total


def every_class(output: Tensor, _: int) -> Iterator[Tensor]:
    """√p_y ∇ log p_y in the output, by autograd."""
    leaf = output.clone().requires_grad_()
    log_p = torch.log_softmax(leaf, dim=-1)
    for entry in log_p.flatten():
        pull = torch.autograd.grad(entry, leaf, retain_graph=True)[0]
        yield pull * entry.detach().exp().sqrt()


def likelihood(labels: Tensor) -> Pulls:
    """∇ Σ log p of given labels: int64 (N,), or (N, T) with −100 and shifted by one place."""

    def pulls(output: Tensor, number: int) -> Iterator[Tensor]:
        leaf = output.clone().requires_grad_()
        log_p = torch.log_softmax(leaf, dim=-1)
        label = labels[number].tolist()
        if isinstance(label, int):
            total = log_p[label]
        else:
            total = sum(log_p[at - 1, label[at]] for at in range(1, len(label)) if label[at] != -100)
        yield torch.autograd.grad(total, leaf)[0]

    return pulls


def assert_close(found: Fisher, expected: Fisher, rtol: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(value.max()) for value in expected.values())
    for name, value in expected.items():
        assert found[name].dtype == torch.float64
        assert torch.allclose(found[name], value.double(), rtol=rtol, atol=1e-14 * largest), name


class Convolutions(nn.Module):
    """Strides, dilations, groups, modes of padding, in one and two dimensions, between normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), padding_mode="circular")
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 6, 2, groups=2, dilation=2, padding="same", bias=False)
        self.groups = nn.GroupNorm(3, 6)
        self.line = nn.Conv1d(6, 3, 3, stride=2)
        self.head = nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Tensor:
        found = functional.relu_(self.norm(self.first(images)))
        found = functional.relu_(self.groups(self.grouped(found)))
        scores: Tensor = self.head(self.line(found.flatten(2)).mean(2))
        return scores


class Reader(nn.Module):
    """Token ids, learned places, attention that leaves out padding, a head of classes or of tokens."""

    def __init__(self, classes: int = 3, tokens: bool = False) -> None:
        super().__init__()
        self.ids, self.places = nn.Embedding(7, 6, padding_idx=2), nn.Embedding(9, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norm, self.scale = nn.LayerNorm(6), nn.Parameter(torch.ones(6))
        self.head, self.tokens = nn.Linear(6, classes), tokens

    def forward(self, ids: Tensor) -> Tensor:
        absent = ids < 0
        found = self.ids(ids.clamp(min=0)) + self.places(torch.arange(ids.shape[1]))
        hidden = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool() if self.tokens else None
        found = (
            found
            + self.attention(found, found, found, key_padding_mask=absent, attn_mask=hidden, need_weights=False)[0]
        )
        found = self.norm(found) * self.scale
        if self.tokens:
            scores: Tensor = self.head(found)
            return scores
        kept = torch.where(absent[..., None], 0.0, found).sum(1) / (~absent).sum(1, keepdim=True)
        pooled: Tensor = self.head(kept)
        return pooled


class Shared(nn.Module):
    """One layer called twice, one weight that is an embedding and used again without a call, and a layer nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.twice, self.unused = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.twice(torch.tanh(self.twice(self.ids(ids)))).mean(1)
        return functional.linear(found, self.ids.weight)


class Experts(nn.Module):
    """Each token goes to the expert that its value asks for, whatever example it is of."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(0, 1)
        chosen = (flat[:, 0] > -0.5).long() + (flat[:, 0] > 0.5).long()
        found = flat.new_zeros(len(flat), 4)
        for number, expert in enumerate(self.experts):
            if (chosen == number).any():
                found[chosen == number] = expert(flat[chosen == number])
        scores: Tensor = self.head(torch.tanh(found.unflatten(0, inputs.shape[:2]).sum(1)))
        return scores


def images(count: int) -> Tensor:
    return torch.randn(count, 2, 5, 4, generator=random(1)).double()


def ids(count: int, different: int = 7) -> Tensor:
    return torch.randint(0, different, (count, 6), generator=random(2))


def sentences(count: int) -> Tensor:
    return torch.randn(count, 4, 3, generator=random(3)).double()


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor], set[str]]] = {
    "perceptron": (lambda: mlp(1), lambda count: points(1, count)[0].double(), set()),
    "convolutions": (Convolutions, images, set()),
    "attention": (Reader, ids, set()),
    "shared": (Shared, lambda count: ids(count, 5), {"ids.weight"}),
    "experts": (Experts, sentences, {f"experts.{n}.{own}" for n in range(3) for own in ("weight", "bias")}),
}


@pytest.mark.parametrize("elements", [50, 2**18])
@pytest.mark.parametrize("numbers", [1, 3000, 2**24])
@pytest.mark.parametrize("case", list(CASES))
def test_it_is_that_of_a_loop_over_examples_and_classes(
    case: str, numbers: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher_batches, "_ACTIVATIONS", numbers)
    monkeypatch.setattr(fisher_gradients, "_ELEMENTS", elements)
    build, make, alone = CASES[case]
    module, inputs = initialise(build(), 5).double(), make(7)
    looped: set[str] = set()
    true_loop = module_under_test._one_by_one

    def heard(network: Network, names: list[str], *rest: object) -> Fisher:
        looped.update(names)
        return true_loop(network, names, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module_under_test, "_one_by_one", heard)
    found = fisher_of(module, inputs, torch.zeros(7, dtype=torch.int64), "exact")
    assert_close(found, naive(module, inputs, every_class))
    assert looped == alone


def fisher_of(module: nn.Module, inputs: Tensor, targets: Tensor, estimator: Estimator, seed: int = 0) -> Fisher:
    return diagonal_fisher(Network(module, inputs[:1]), Dataset(inputs, targets), len(inputs), estimator, seed)


def test_labels_are_used_where_they_are_asked_for() -> None:
    module, (inputs, targets) = mlp(2).double(), points(2, 9)
    found = fisher_of(module, inputs.double(), targets, "empirical")
    assert_close(found, naive(module, inputs.double(), likelihood(targets)))


def test_values_count_by_their_distance_where_they_are_used() -> None:
    module, inputs = mlp(2).double(), points(2, 9)[0].double()
    values = torch.randn(9, 4, generator=random(5)).double()
    found = fisher_of(module, inputs, values, "empirical")
    assert_close(found, naive(module, inputs, lambda output, number: iter([values[number] - output])))


@pytest.mark.parametrize("classes", [3, 600])
def test_drawn_labels_follow_from_the_seed_and_the_example_alone(classes: int) -> None:
    module, inputs = mlp(3, (6, classes)).double(), points(3, 9)[0].double()
    probabilities = torch.softmax(module(inputs), dim=1).detach().numpy()
    uniform = [1.0 - generator(11, "fisher", number).random() for number in range(9)]
    drawn = [int(np.searchsorted(np.cumsum(p), u * p.sum())) for p, u in zip(probabilities, uniform, strict=True)]
    found = fisher_of(module, inputs, torch.zeros(9, dtype=torch.int64), "sampled", seed=11)
    assert_close(found, naive(module, inputs, likelihood(torch.tensor(drawn))))


def test_drawn_values_are_standard_normal_around_the_output() -> None:
    module, inputs = mlp(2).double(), points(2, 9)[0].double()
    found = fisher_of(module, inputs, torch.zeros(9, 4, dtype=torch.float64), "sampled", seed=3)
    assert_close(
        found,
        naive(
            module,
            inputs,
            lambda _, number: iter([torch.from_numpy(generator(3, "fisher", number).standard_normal(4))]),
        ),
    )


def test_a_label_without_probability_is_never_drawn() -> None:
    module = nn.Sequential(nn.Linear(1, 700)).double()
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].bias.fill_(-torch.inf)
        module[0].bias[[300, 512]] = 0.0
    network = Network(module, torch.ones(1, 1).double())
    data = Dataset(torch.ones(64, 1).double(), torch.zeros(64, dtype=torch.int64))
    # ½ (e₃₀₀ − e₅₁₂) or its negative: every draw gives ¼ at both, and nothing elsewhere.
    bias = diagonal_fisher(network, data, 64, "sampled")["0.bias"]
    assert bias.nonzero().flatten().tolist() == [300, 512]
    assert bias[[300, 512]].tolist() == [0.25, 0.25]


def language() -> tuple[nn.Module, Tensor, Tensor]:
    module, tokens = initialise(Reader(7, tokens=True), 6).double(), ids(5)
    labels = torch.where(torch.rand(5, 6, generator=random(2)) < 0.4, -100, tokens)
    labels[:, 3] = tokens[:, 3]
    return module, tokens, labels


def of_places(labels: Tensor) -> Pulls:
    """√p_y ∇ log p_y for every label at every place that is predicted."""

    def pulls(output: Tensor, number: int) -> Iterator[Tensor]:
        for at in range(1, output.shape[0]):
            if labels[number, at] != -100:
                for pull in every_class(output[at - 1], number):
                    whole = torch.zeros_like(output)
                    whole[at - 1] = pull
                    yield whole

    return pulls


def test_the_exact_fisher_of_token_data_takes_every_place_and_token() -> None:
    module, tokens, labels = language()
    assert_close(fisher_of(module, tokens, labels, "exact"), naive(module, tokens, of_places(labels)))


def test_labels_drawn_for_whole_sequences_give_the_exact_fisher_in_the_mean() -> None:
    module, tokens, labels = language()
    exact = naive(module, tokens, of_places(labels))
    draws = 150
    found = [fisher_of(module, tokens, labels, "sampled", seed) for seed in range(draws)]
    for name, value in exact.items():
        each = torch.stack([fisher[name].sum() for fisher in found])
        # Five times the error of the mean, which the draws tell themselves.
        assert abs(float(each.mean() - value.sum())) <= 5 * float(each.std()) / draws**0.5 + 1e-12, name


@pytest.mark.parametrize("estimator", ["sampled", "empirical"])
@pytest.mark.parametrize("tokens", [False, True])
def test_padding_changes_nothing(estimator: Estimator, tokens: bool) -> None:
    module, short = initialise(Reader(7, tokens), 6).double(), ids(5)
    labels = short if tokens else short[:, 0]
    padded = functional.pad(short, (0, 3), value=-1)
    longer = functional.pad(labels, (0, 3), value=-100) if tokens else labels
    found = fisher_of(module, padded, longer, estimator, seed=4)
    assert_close(found, {**fisher_of(module, short, labels, estimator, seed=4)})


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**31))
def test_one_example_and_dead_units_give_numbers(seed: int) -> None:
    module = mlp(seed)
    with torch.no_grad():
        module[2].weight[1] = 0.0
        module[2].bias[1] = -1.0
    found = fisher_of(module, points(seed, 1)[0], torch.zeros(1, dtype=torch.int64), "exact")
    assert all(bool(torch.isfinite(value).all()) for value in found.values())
    assert float(found["2.weight"][1].sum()) == float(found["4.weight"][:, 1].sum()) == 0.0


def test_auto_is_exact_up_to_32_and_draws_above_and_for_tokens() -> None:
    assert resolved("auto", "cross_entropy", (32,)) == "exact"
    assert resolved("auto", "cross_entropy", (33,)) == "sampled"
    assert resolved("auto", "mean_squared_error", (4, 9)) == "sampled"
    assert resolved("auto", "causal_lm", (2, 3)) == "sampled"
    assert resolved("empirical", "causal_lm", (2, 3)) == "empirical"
