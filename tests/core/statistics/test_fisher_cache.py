from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cogram_core import fuse
from cogram_core.determinism import repeatable
from cogram_core.errors import FusionStopped
from cogram_core.evaluation.datasets import Dataset
from cogram_core.networks.network import Network
from cogram_core.observer import SilentObserver
from cogram_core.statistics import fisher as module_under_test
from cogram_core.statistics.fisher import diagonal_fisher
from cogram_core.statistics.fisher_cache import FisherCache, remembering
from cogram_core.stopping import stoppable
from tests.core.factories import checkpoint_bytes, mlp, points, recipe_document

KEY = "ab" * 32


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one entry whenever Fisher information is computed."""
    found: list[int] = []
    compute = module_under_test._means

    def counted(*arguments: object) -> dict[str, Tensor]:
        found.append(1)
        return compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module_under_test, "_means", counted)
    return found


def fisher(seed: int = 0) -> dict[str, Tensor]:
    return {"a.weight": torch.rand(3, 2, generator=torch.Generator().manual_seed(seed)), "a.bias": torch.rand(3)}


def test_a_second_fusion_does_not_pay_again_and_gives_the_same_bytes(tmp_path: Path, computed: list[int]) -> None:
    document = recipe_document(tmp_path, [mlp(1), mlp(2)], ["fisher"], evaluation=points(1, 9), guard="off")
    cache = tmp_path / "shared" / "cache"
    fuse(document, tmp_path / "without")
    assert len(computed) == 2
    fuse(document, tmp_path / "first", cache=cache)
    assert len(computed) == 4
    fuse(document, tmp_path / "second", cache=cache)
    assert len(computed) == 4
    expected = checkpoint_bytes(tmp_path / "without")
    assert expected == checkpoint_bytes(tmp_path / "first") == checkpoint_bytes(tmp_path / "second")
    assert len(list(cache.iterdir())) == 2


def taken(module: nn.Module, data: Dataset, estimator: str = "exact", seed: int = 0) -> dict[str, Tensor]:
    network = Network(module, data.inputs[:1])
    return diagonal_fisher(network, data, 6, estimator, seed)  # type: ignore[arg-type]


class Otherwise(nn.Sequential):
    """Computes what no module of it tells."""

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = super().forward(2 * inputs)
        return result


def test_whatever_it_follows_from_makes_another_entry(tmp_path: Path, computed: list[int]) -> None:
    inputs, targets = points(1, 9)
    module, data = mlp(1), Dataset(inputs, targets)
    permuted = mlp(1)
    order = torch.arange(8).flip(0)
    with torch.no_grad():  # as an aligned source is: the same function of other tensors
        for name in ("weight", "bias"):
            permuted[0].get_parameter(name).copy_(module[0].get_parameter(name)[order])
        permuted[2].weight.copy_(module[2].weight[:, order])
    others: list[Callable[[], dict[str, Tensor]]] = [
        lambda: taken(module, data),
        lambda: taken(permuted, data),
        lambda: taken(module, Dataset(inputs.flip(0), targets)),
        lambda: taken(module, Dataset(inputs, targets.flip(0)), "empirical"),
        lambda: taken(module, data, "empirical"),
        lambda: taken(module, data, "sampled"),
        lambda: taken(module, data, "sampled", seed=1),
        lambda: taken(mlp(1).double(), Dataset(inputs.double(), targets)),
        lambda: taken(Otherwise(*mlp(1)), data),
    ]
    with repeatable(1, torch.device("cpu")):
        plain = [make() for make in others]
        computed.clear()
        for _ in range(2):
            with remembering(tmp_path):
                kept = [make() for make in others]
            for found, expected in zip(kept, plain, strict=True):
                assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert len(computed) == len(others)
    with remembering(tmp_path), repeatable(2, torch.device("cpu")):
        taken(module, data)
    assert len(computed) == len(others) + 1


@pytest.mark.parametrize("fault", ["flipped", "cut", "empty", "another's", "a folder"])
def test_a_damaged_entry_is_ignored_and_replaced(fault: str, tmp_path: Path) -> None:
    cache = FisherCache(tmp_path, 2**20)
    cache.put(KEY, fisher())
    (path,) = tmp_path.iterdir()
    raw = bytearray(path.read_bytes())
    if fault == "flipped":
        raw[-1] ^= 1
    elif fault == "another's":
        other = FisherCache(tmp_path / "other", 2**20)
        other.put("cd" * 32, fisher(1))
        raw = bytearray(next((tmp_path / "other").iterdir()).read_bytes())
    path.write_bytes({"cut": raw[:-3], "empty": b""}.get(fault, raw))
    if fault == "a folder":
        path.unlink()
        path.mkdir()
        (path / "inside").touch()
    assert cache.get(KEY) is None
    cache.put(KEY, fisher(2))
    found = cache.get(KEY)
    if fault != "a folder":
        assert found is not None
        assert torch.equal(found["a.weight"], fisher(2)["a.weight"])


def test_the_least_recently_used_entries_are_given_up(tmp_path: Path) -> None:
    size = _size_of_one(tmp_path / "one")
    cache = FisherCache(tmp_path, 3 * size)
    keys = [f"{place:064x}" for place in range(5)]
    for place, key in enumerate(keys[:3]):
        cache.put(key, fisher(place))
        os.utime(tmp_path / f"{key}.safetensors", ns=(place, place))
    assert cache.get(keys[0]) is not None  # used again
    cache.put(keys[3], fisher(3))
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True, False]
    FisherCache(tmp_path, size // 2).put(keys[4], fisher(4))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) <= size // 2
    untouched = FisherCache(tmp_path / "small", 5)
    untouched.put(KEY, fisher())
    assert not (tmp_path / "small").exists()


def _size_of_one(folder: Path) -> int:
    FisherCache(folder, 2**20).put(KEY, fisher())
    return next(folder.iterdir()).stat().st_size


def test_what_dead_writers_left_goes_and_what_living_ones_write_stays(tmp_path: Path) -> None:
    for name in ("dead.partial", "living.partial"):
        (tmp_path / name).mkdir()
    os.utime(tmp_path / "dead.partial", (0, 0))
    FisherCache(tmp_path, 2**20).put(KEY, fisher())
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{KEY}.safetensors", "living.partial"]


def test_several_writers_and_readers_share_a_folder(tmp_path: Path) -> None:
    size = _size_of_one(tmp_path / "one")
    expected = [fisher(seed) for seed in range(4)]
    wrong: list[object] = []

    def work(first: int) -> None:
        cache = FisherCache(tmp_path, 2 * size)
        try:
            for step in range(30):
                seed = (first + step) % 4
                cache.put(f"{seed:064x}", expected[seed])
                found = cache.get(f"{(seed + 1) % 4:064x}")
                if found is not None and not torch.equal(found["a.weight"], expected[(seed + 1) % 4]["a.weight"]):
                    wrong.append(seed)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(list(tmp_path.glob("*.safetensors"))) <= 2


def test_a_cache_that_cannot_be_written_breaks_no_run(tmp_path: Path, computed: list[int]) -> None:
    (tmp_path / "file").touch()
    document = recipe_document(tmp_path, [mlp(1), mlp(2)], ["fisher"], evaluation=points(1, 9), guard="off")
    fuse(document, tmp_path / "out", cache=tmp_path / "file" / "cache")
    assert len(computed) == 2


def test_asking_to_stop_ends_the_look_into_the_cache(tmp_path: Path) -> None:
    class Stopping(SilentObserver):
        def should_stop(self) -> bool:
            return True

    FisherCache(tmp_path, 2**20).put(KEY, fisher())
    with stoppable(Stopping()), pytest.raises(FusionStopped):
        FisherCache(tmp_path, 2**20).get(KEY)
