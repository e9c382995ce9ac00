from __future__ import annotations

from pathlib import Path

import cogram_core
from cogram_core.observer import SilentObserver, StageInfo
from cogram_core.trace import Trace
from tests.core.pipeline.recording import Recording, document


def test_stages_are_told_in_order_with_everything_that_belongs_to_them_between(tmp_path: Path) -> None:
    observer = Recording()
    cogram_core.fuse(document(tmp_path / "inputs"), tmp_path / "out", observer=observer)
    fisher, cogram = StageInfo(0, 2, "fisher"), StageInfo(1, 2, "cogram")
    frame = [call for call in observer.calls if call[0] in {"started", "finished"}]
    assert frame == [("started", fisher), ("finished", fisher), ("started", cogram), ("finished", cogram)]
    current: StageInfo | None = None
    for kind, *what in observer.calls:
        if kind == "started":
            current = what[0]
        elif kind == "decision":
            assert current is not None
            assert (what[0].stage, what[0].method) == (current.index, current.method)
        elif kind == "progress":
            stage, done, total = what
            assert stage == current
            assert 0 <= done <= total
        else:
            current = None
    assert current is None


def test_the_observer_hears_exactly_the_decisions_of_the_trace(tmp_path: Path) -> None:
    observer = Recording()
    cogram_core.fuse(document(tmp_path / "inputs"), tmp_path / "out", observer=observer)
    heard = [call[1] for call in observer.calls if call[0] == "decision"]
    assert heard == list(Trace(tmp_path / "out" / "trace.parquet").decisions())
    assert [decision.seq for decision in heard] == list(range(len(heard)))


def test_progress_reaches_its_total_in_every_stage(tmp_path: Path) -> None:
    observer = Recording()
    cogram_core.fuse(document(tmp_path / "inputs"), tmp_path / "out", observer=observer)
    for index in (0, 1):
        steps = [call[2:] for call in observer.calls if call[0] == "progress" and call[1].index == index]
        assert steps[-1][0] == steps[-1][1] > 0


def test_a_per_tensor_merge_tells_of_its_stage_too(tmp_path: Path) -> None:
    given = document(tmp_path / "inputs", stages=[{"method": "linear"}], guard="off", data={})
    observer = Recording()
    cogram_core.fuse(given, tmp_path / "out", observer=observer)
    kinds = [call[0] for call in observer.calls]
    assert kinds == ["started", *["decision", "progress"] * 6, "finished"]


def test_the_silent_observer_never_stops_a_run(tmp_path: Path) -> None:
    assert SilentObserver().should_stop() is False
    cogram_core.fuse(document(tmp_path / "inputs"), tmp_path / "out", observer=SilentObserver())
