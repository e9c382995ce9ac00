"""One service for all tests that don't harm it; those that kill or stop one start their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client import Client
from tests.e2e.inputs import Inputs, make_inputs
from tests.e2e.served import Served, serving


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands keep for later ones is not kept in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("COGRAM_CACHE_DIR", raising=False)
        yield


@pytest.fixture(scope="session")
def small_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Fused within a second."""
    return make_inputs(tmp_path_factory.mktemp("small"), hidden=8, examples=64)


@pytest.fixture(scope="session")
def long_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Fused within some ten seconds by ``long_recipe``, so that there is time to disturb it."""
    return make_inputs(tmp_path_factory.mktemp("long"), hidden=256, examples=4096)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running service."""
    with serving(tmp_path_factory.mktemp("served") / "data") as started:
        yield started


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    """A client of the running service."""
    with served.client() as client:
        yield client


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder for a service of the test's own."""
    return tmp_path / "data"
