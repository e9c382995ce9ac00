"""How much memory a process of its own has taken at most."""

from __future__ import annotations

import re
from pathlib import Path

_PEAK = re.compile(r"VmHWM:\s+(\d+) kB")


def peak_kibibytes() -> int:
    """Of this process since its program began: ``getrusage`` counts what the process that started it had taken, too."""
    found = _PEAK.search(Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])
