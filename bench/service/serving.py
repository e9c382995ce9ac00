"""`cogram serve` as a user starts it, with a data folder that goes away at the end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_READY = re.compile(r"cogram is ready at (http://\S+)")


@contextmanager
def serving(*options: str, **environment: str) -> Iterator[str]:
    """The address of a service that has nothing to do."""
    with tempfile.TemporaryDirectory(prefix="cogram-bench-") as folder, (Path(folder) / "log").open("wb") as log:
        command = [sys.executable, "-m", "app.cli", "serve", "--data-dir", f"{folder}/data", "--port", "0", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment)
        try:
            assert process.stdout is not None
            ready = _READY.match(process.stdout.readline())
            if ready is None:
                sys.exit(f"the service ended before it was ready:\n{Path(log.name).read_text()}")
            yield ready[1]
        finally:
            process.terminate()
            process.wait(30)
