from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cogram_core.permuting import Axis, check_permutations, pack_alignment, permuted, unpack_alignment
from cogram_core.sources import LoadedSource, MemoryStore


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_a_permuted_tensor_is_what_loops_over_its_entries_give(data: st.DataObject) -> None:
    before, units, after = (data.draw(st.integers(1, 4)) for _ in range(3))
    order = data.draw(st.permutations(range(units)))
    dim = data.draw(st.integers(0, 2))
    shape = [2, 3, 2]
    shape[dim] = before * units * after
    tensor = np.arange(np.prod(shape)).reshape(shape)
    expected = np.empty_like(tensor)
    for b in range(before):
        for u in range(units):
            for a in range(after):
                new, old = (b * units + u) * after + a, (b * units + order[u]) * after + a
                expected[(slice(None),) * dim + (new,)] = tensor[(slice(None),) * dim + (old,)]
    axis = Axis("weight", dim, before, after)
    found = permuted(torch.from_numpy(tensor), [(axis, torch.tensor(order))])
    assert found.tolist() == expected.tolist()


def test_a_source_reads_whole_tensors_and_rows_in_the_new_order() -> None:
    weight, bias = torch.randn(4, 3), torch.randn(4)
    store = MemoryStore("one", {"0.weight": weight, "0.bias": bias})
    source = LoadedSource("one", 1.0, store, torch.float64, torch.device("cpu"))
    first, second = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 0, 2])
    moved = source.reordered([Axis("0.weight", 0), Axis("0.bias", 0)], first).reordered([Axis("0.weight", 1)], second)
    assert torch.equal(moved.read("0.weight"), weight[first][:, second].double())
    assert torch.equal(moved.read_rows("0.weight", 1, 3), weight[first][:, second][1:3].double())
    assert torch.equal(moved.read("0.bias"), bias[first].double())
    assert torch.equal(source.read("0.weight"), weight.double())


def test_an_alignment_survives_its_way_through_the_trace() -> None:
    axes = [Axis("encoder.0.weight", 0, 3, 16), Axis("außen", 1)]
    orders = torch.stack([torch.arange(5), torch.tensor([4, 2, 0, 1, 3])])
    found, numbers = unpack_alignment(pack_alignment(axes, orders))
    assert found == axes
    assert torch.equal(numbers, orders)


@pytest.mark.parametrize("cut", [0, 3, 20, -1])
def test_a_payload_that_is_cut_off_is_refused(cut: int) -> None:
    payload = pack_alignment([Axis("w", 0)], torch.arange(4)[None])
    with pytest.raises(ValueError, match=r"alignment|orders"):
        unpack_alignment(payload[:cut])


@pytest.mark.parametrize(
    ("axis", "orders"),
    [
        (Axis("other", 0), [[0, 1]]),
        (Axis("w", 2), [[0, 1]]),
        (Axis("w", -1), [[0, 1]]),
        (Axis("w", 0, before=0), [[0, 1]]),
        (Axis("w", 0), [[0, 1, 2]]),
        (Axis("w", 0), [[0, 0]]),
        (Axis("w", 0), [[0, 1], [1, 2]]),
    ],
)
def test_orders_that_do_not_fit_are_refused(axis: Axis, orders: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"axis|units|order"):
        check_permutations([axis], torch.tensor(orders), {"w": (2, 3)})
