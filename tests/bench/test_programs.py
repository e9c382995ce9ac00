"""Every benchmark still finds what it measures."""

from __future__ import annotations

import importlib

import pytest

from bench.run import BENCHMARKS


@pytest.mark.parametrize("name", [*BENCHMARKS, "bench.gpu", "bench.paper.__main__"])
def test_a_benchmark_can_be_started(name: str) -> None:
    assert callable(importlib.import_module(name).main)
