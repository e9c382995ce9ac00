"""Folders of attempts, made and removed by workers and reapers at the same moment."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from threading import Event, Thread

from worker.workspace import Workspace, attempts, remove_if_empty


def test_a_fusion_s_folder_that_is_gone_or_is_a_file_has_no_attempts(tmp_path: Path) -> None:
    (tmp_path / "fus_file").write_text("")
    assert attempts(tmp_path / "fus_gone") == []
    assert attempts(tmp_path / "fus_file") == []


def test_a_folder_is_made_while_an_earlier_worker_removes_the_fusion_s(tmp_path: Path) -> None:
    done = Event()

    def remove() -> None:
        while not done.is_set():
            remove_if_empty(tmp_path / "fus_1")
            time.sleep(0.0001)

    zombie = Thread(target=remove)
    zombie.start()
    try:
        for attempt in range(300):
            workspace = Workspace(tmp_path, "fus_1", attempt)
            workspace.create()
            assert workspace.path.is_dir()
            shutil.rmtree(workspace.path)
    finally:
        done.set()
        zombie.join()
