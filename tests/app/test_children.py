"""Child processes stand back where they were told to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Of the processes on one machine, Linux lets those without this capability set a session's niceness by turns only.
_WITHOUT_ADMIN = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 21)  # PR_CAPBSET_DROP, CAP_SYS_ADMIN: what is run next doesn't have it
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
_FAMILY = """
import json, sys
from pathlib import Path
from app.children import Child, Program
children = [Child(Program(str(n), ("sleep", "60"), niceness=7 * (n > 0))) for n in range(4)]
for child in children:
    child.start()
found = [Path(f"/proc/{child._process.pid}/autogroup") for child in children]
print(json.dumps([int(path.read_text().split()[-1]) if path.exists() else None for path in found]))
for child in children:
    child.end()
"""


def test_of_several_children_started_at_once_every_session_stands_back() -> None:
    command = [sys.executable, "-c", _WITHOUT_ADMIN, "-c", _FAMILY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    kernel_has_them = Path("/proc/self/autogroup").exists()
    assert json.loads(done.stdout) == ([0, 7, 7, 7] if kernel_has_them else [None] * 4)
