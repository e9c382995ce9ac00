from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import cogram_core
from cogram_core.errors import FusionStopped
from cogram_core.networks.sequential import Chain
from tests.core.pipeline.recording import Failing, Recording, document, entries

NEURONS = [{"method": "linear"}, {"method": "cogram", "granularity": "neuron", "max_sweeps": {"layer": 1, "neuron": 1}}]


@pytest.mark.parametrize("changes", [{}, {"stages": NEURONS}, {"stages": [{"method": "linear"}], "guard": "off"}])
def test_a_stop_at_any_question_leaves_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = document(tmp_path / "inputs", **changes)
    whole = Recording()
    cogram_core.fuse(given, tmp_path / "whole" / "out", observer=whole)
    assert whole.asked > 10
    out = tmp_path / "stopped" / "out"
    for stop_at in sorted({*range(12), *range(12, whole.asked, 1 + whole.asked // 20), whole.asked - 1}):
        observer = Recording(stop_at)
        with pytest.raises(FusionStopped, match="stopped"):
            cogram_core.fuse(given, out, observer=observer)
        # The first yes is the last question: nothing goes on after it.
        assert observer.asked == stop_at + 1
        assert entries(out.parent) == []
    cogram_core.fuse(given, out, observer=Recording(whole.asked))
    assert entries(out.parent) == ["out"]


def test_an_observer_that_fails_at_any_call_leaves_nothing(tmp_path: Path) -> None:
    given = document(tmp_path / "inputs")
    out = tmp_path / "failed" / "out"
    whole = Recording()
    cogram_core.fuse(given, tmp_path / "whole", observer=whole)
    count = whole.asked + len(whole.calls)
    for fail_at in sorted({*range(0, count, 3), count - 1}):
        with pytest.raises(KeyboardInterrupt):
            cogram_core.fuse(given, out, observer=Failing(fail_at))
        assert entries(out.parent) == []


def test_a_stop_is_asked_between_all_forward_passes(tmp_path: Path) -> None:
    """Decisions are taken together, so that it is passes, and not decisions, that a stop has to wait for."""
    given = document(tmp_path / "inputs", stages=NEURONS)
    events: list[str] = []

    class Asking(Recording):
        def should_stop(self) -> bool:
            events.append("asked")
            return super().should_stop()

    def passed(module: nn.Module, *_: object) -> None:
        if isinstance(module, Chain):
            events.append("pass")

    handle = register_module_forward_hook(passed)
    try:
        cogram_core.fuse(given, tmp_path / "out", observer=Asking())
    finally:
        handle.remove()
    runs = [len(list(group)) for kind, group in groupby(events) if kind == "pass"]
    assert sum(runs) > 20
    assert max(runs) <= 4
