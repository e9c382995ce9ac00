from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.core.pipeline.recording import document, entries

FUSE = """
import json, resource, signal, sys
import cogram_core
from cogram_core.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cogram_core.fuse(json.loads(sys.argv[1]), sys.argv[3])  # torch writes files of its own the first time
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
for room in (0, 700, 1200, 6000, 20000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    try:
        cogram_core.fuse(json.loads(sys.argv[1]), sys.argv[2])
    except OutputError as error:
        print(error)
"""


def test_files_that_can_not_grow_end_in_one_clear_error_and_nothing_written(tmp_path: Path) -> None:
    """Wherever the room ends: in the journal, the tensors, the recipe, the trace or the report."""
    given = json.dumps(document(tmp_path / "inputs"))
    out = tmp_path / "outputs" / "out"
    run = subprocess.run(
        [sys.executable, "-c", FUSE, given, str(out), str(tmp_path / "first")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    told = run.stdout.splitlines()
    assert len(told) == 5
    assert [line for line in told if "can't be written" not in line or "File too large" not in line] == []
    assert entries(out.parent) == []
