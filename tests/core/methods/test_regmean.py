from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cogram_core import fuse, fuse_modules
from cogram_core.trace import Trace
from tests.core.factories import initialise, mlp, points, random, read_output, recipe_document, save_data

Array = np.ndarray[Any, np.dtype[np.float64]]


def array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().double().numpy())


def with_ones(rows: Array) -> Array:
    return np.hstack([rows, np.ones((len(rows), 1))])


def naive_regmean(
    inputs: Sequence[Array], matrices: Sequence[Array], weights: Sequence[float], alpha: float, ridge: float
) -> Array:
    """(Σ w (Ĝ + μI))⁻¹ Σ w (Ĝ + μI) W with the weights' sum one; inputs (rows, f), matrices (f, o)."""
    total = sum(weights)
    shrunk = []
    for rows in inputs:
        gram = rows.T @ rows / len(rows)
        shrunk.append(alpha * gram + (1 - alpha) * np.diag(np.diag(gram)))
    mu = ridge * np.mean(sum(w / total * np.diag(gram) for w, gram in zip(weights, shrunk, strict=True)))
    raised = [w / total * (gram + mu * np.eye(len(gram))) for w, gram in zip(weights, shrunk, strict=True)]
    solved = np.linalg.solve(sum(raised), sum(g @ w for g, w in zip(raised, matrices, strict=True)))
    return np.asarray(solved)


def matrix_of(layer: nn.Linear) -> Array:
    weight = array(layer.weight).T
    return weight if layer.bias is None else np.vstack([weight, array(layer.bias)[None]])


def close(found: Tensor, exact: Array, tolerance: float) -> None:
    scale = np.abs(exact).max()
    assert np.abs(array(found) - exact).max() <= tolerance * scale


def chain(seed: int) -> nn.Sequential:
    network = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 4))
    initialise(network, seed)
    return network


@pytest.mark.parametrize("prefix", ["own", "merged"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_is_the_closed_form_of_every_layer_in_plain_numpy(prefix: str, dtype: str, tmp_path: Path) -> None:
    modules, data = [chain(seed) for seed in (1, 2, 3)], [points(seed, 90 + seed) for seed in (11, 12, 13)]
    weights = [1.0, 2.5, 0.5]
    stage = {"method": "regmean", "prefix": prefix, "alpha": 0.8, "ridge": 1e-3}
    document = recipe_document(tmp_path, modules, [stage], guard="off", compute_dtype=dtype, output={"dtype": dtype})
    for place, source in enumerate(document["sources"]):
        path = save_data(tmp_path / f"data-{place}.safetensors", data[place])
        source |= {"data": str(path), "weight": weights[place]}
    fuse(document, tmp_path / "out")
    found = read_output(tmp_path / "out")
    arriving = [array(inputs) for inputs, _ in data]
    activations = [lambda x: np.maximum(x, 0), np.tanh, lambda x: x]
    for place, activation in zip((0, 2, 4), activations, strict=True):
        matrices = [matrix_of(module[place]) for module in modules]
        rows = [with_ones(x) for x in arriving]
        merged = naive_regmean(rows, matrices, weights, 0.8, 1e-3)
        tolerance = 1e-11 if dtype == "float64" else 2e-5
        close(found[f"{place}.weight"], merged[:-1].T, tolerance)
        close(found[f"{place}.bias"], merged[-1], tolerance)
        through = matrices if prefix == "own" else [merged] * 3
        arriving = [activation(x @ w) for x, w in zip(rows, through, strict=True)]


def test_a_layer_without_a_bias_is_solved_without_a_column_of_ones() -> None:
    modules = [initialise(nn.Sequential(nn.Linear(6, 4, bias=False)), seed) for seed in (1, 2)]
    data = points(3, 40)
    fused = fuse_modules(modules, stages="regmean", data={"evaluation": data}, guard="off").module
    rows = [array(data[0])] * 2
    close(fused[0].weight, naive_regmean(rows, [matrix_of(module[0]) for module in modules], [1, 1], 0.9, 1e-4).T, 1e-5)


def patches(inputs: Array, kernel: tuple[int, int], stride: int, padding: int, dilation: int) -> Array:
    """im2col by loops: (N, places, C·kh·kw), channels slowest."""
    padded = np.pad(inputs, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    reach = [dilation * (size - 1) + 1 for size in kernel]
    rows = []
    for top in range(0, padded.shape[2] - reach[0] + 1, stride):
        for left in range(0, padded.shape[3] - reach[1] + 1, stride):
            window = padded[:, :, top : top + reach[0] : dilation, left : left + reach[1] : dilation]
            rows.append(window.reshape(len(inputs), -1))
    return np.stack(rows, 1)


@pytest.mark.parametrize(
    ("groups", "kernel", "stride", "padding", "dilation", "bias"),
    [(1, (3, 3), 1, 1, 1, True), (2, (2, 3), 2, 0, 1, False), (4, (3, 2), 1, 2, 2, True)],
)
def test_convolutions_are_solved_on_their_patches(
    groups: int, kernel: tuple[int, int], stride: int, padding: int, dilation: int, bias: bool
) -> None:
    def build(seed: int) -> nn.Module:
        convolution = nn.Conv2d(
            4, 8, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias
        )
        return initialise(nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), seed)

    modules, data = [build(1), build(2)], points(3, 40, (4, 7, 8), 3)
    fused = fuse_modules(modules, stages=[{"method": "regmean"}], data={"evaluation": data}, guard="off").module
    rows = patches(array(data[0]), kernel, stride, padding, dilation)
    rows = rows.reshape(-1, rows.shape[2])
    size = 4 // groups * kernel[0] * kernel[1]
    for group in range(groups):
        part = rows[:, group * size : (group + 1) * size]
        own = slice(group * 8 // groups, (group + 1) * 8 // groups)
        weights = [array(module[0].weight)[own].reshape(8 // groups, -1).T for module in modules]
        if bias:
            part = with_ones(part)
            weights = [np.vstack([w, array(m[0].bias)[own][None]]) for w, m in zip(weights, modules, strict=True)]
        exact = naive_regmean([part, part], weights, [1, 1], 0.9, 1e-4)
        found = array(fused[0].weight)[own].reshape(8 // groups, -1).T
        if bias:
            found = np.vstack([found, array(fused[0].bias)[own][None]])
        assert np.abs(found - exact).max() <= 1e-5


def test_one_dimensional_convolutions_and_other_paddings_agree_with_their_own_equations() -> None:
    def build(seed: int) -> nn.Module:
        first = nn.Conv1d(3, 4, 3, padding="same", dilation=2)
        second = nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular", groups=2)
        return initialise(nn.Sequential(first, nn.ReLU(), second, nn.Flatten(), nn.Linear(32, 3)), seed)

    modules, data = [build(5)] * 2, points(3, 30, (3, 8), 3)
    result = fuse_modules(modules, stages=[{"method": "regmean"}], data={"evaluation": data}, guard="off")
    solved = {row.layer: row for row in result.trace.decisions() if row.action == "solved"}
    assert {"0.weight", "0.bias", "2.weight", "2.bias"} <= solved.keys()
    for name, tensor in result.module.state_dict().items():
        assert torch.allclose(tensor, modules[0].state_dict()[name], rtol=1e-5, atol=1e-6), name
    assert all(row.loss_before == pytest.approx(0, abs=1e-9) for row in solved.values())


def test_the_losses_are_the_mean_squared_residuals_of_the_average_and_of_the_solution() -> None:
    modules, data = [mlp(1), mlp(2)], points(3, 80)
    result = fuse_modules(modules, stages="regmean", data={"evaluation": data}, guard="off")
    rows = {row.layer: row for row in result.trace.decisions()}
    arriving = [with_ones(array(data[0]))] * 2
    matrices = [matrix_of(module[0]) for module in modules]
    average, found = sum(matrices) / 2, matrix_of(result.module[0])
    for matrix, loss in ((average, rows["0.weight"].loss_before), (found, rows["0.weight"].loss_after)):
        residuals = [x @ (matrix - own) for x, own in zip(arriving, matrices, strict=True)]
        assert loss == pytest.approx(np.mean([np.mean(each**2) for each in residuals]), rel=1e-4)
    assert rows["0.bias"].loss_after == rows["0.weight"].loss_after
    after, before = rows["2.weight"].loss_after, rows["2.weight"].loss_before
    assert after is not None
    assert before is not None
    assert after < before
    assert rows["0.weight"].shares == (0.5, 0.5)


def test_what_is_no_linear_layer_gets_the_weighted_mean() -> None:
    def build(seed: int) -> nn.Module:
        return initialise(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.LayerNorm(5), nn.Linear(5, 4)), seed)

    modules = [build(1), build(2)]
    result = fuse_modules(modules, stages="regmean", data={"evaluation": points(3)}, guard="off")
    rows = {row.layer: row for row in Trace.decisions(result.trace)}
    for name, tensor in result.module.state_dict().items():
        if name.startswith(("1.", "2.")) and tensor.is_floating_point():
            one, other = (module.state_dict()[name].double() for module in modules)
            assert torch.equal(tensor, ((one + other) / 2).float())
            assert (rows[name].action, rows[name].payload) == ("merged", None)
    assert {name for name, row in rows.items() if row.action == "solved"} == {
        f"{layer}.{tensor}" for layer in (0, 3) for tensor in ("weight", "bias")
    }


class Again(nn.Module):
    """One layer called twice, and one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.last = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.as_tensor(self.last(torch.tanh(self.again(torch.tanh(self.again(inputs))))))


def test_a_layer_that_is_called_twice_is_solved_on_what_arrives_at_both_calls() -> None:
    modules = [initialise(Again(), seed) for seed in (1, 2)]
    inputs, targets = points(3, 50)
    fused = fuse_modules(modules, stages="regmean", data={"evaluation": (inputs, targets)}, guard="off").module
    rows = []
    for module in modules:
        assert isinstance(module, Again)
        first = array(inputs)
        second = np.tanh(with_ones(first) @ matrix_of(module.again))
        rows.append(with_ones(np.vstack([first, second])))
    exact = naive_regmean(rows, [matrix_of(m.again) for m in modules], [1, 1], 0.9, 1e-4)  # type: ignore[arg-type]
    assert np.abs(matrix_of(fused.again) - exact).max() <= 1e-5  # type: ignore[arg-type]


def test_batches_and_threads_of_the_walk_leave_no_trace_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from cogram_core.statistics import streams

    modules, data = [mlp(1), mlp(2)], points(3, 150)
    usual = fuse_modules(modules, stages="regmean", data={"evaluation": data}, guard="off").module.state_dict()
    monkeypatch.setattr(streams, "_EXAMPLES", 7)
    monkeypatch.setattr(streams, "_MOST_BATCHES", 1000)
    other = fuse_modules(modules, stages="regmean", data={"evaluation": data}, guard="off").module.state_dict()
    for name, tensor in usual.items():
        assert torch.allclose(tensor, other[name], rtol=1e-5, atol=1e-6), name


def test_examples_are_drawn_evenly_over_the_data() -> None:
    modules, (inputs, targets) = [mlp(1), mlp(2)], points(3, 100)
    inputs[1::2] = torch.randn(50, 6, generator=random(9)) * 100  # never drawn
    drawn = {"evaluation": (inputs[::2], targets[::2])}
    stage = {"method": "regmean", "examples": 50}
    first = fuse_modules(modules, stages=[stage], data={"evaluation": (inputs, targets)}, guard="off").module
    second = fuse_modules(modules, stages=[stage], data=drawn, guard="off").module
    assert all(torch.equal(t, second.state_dict()[name]) for name, t in first.state_dict().items())
