"""What each recipe of a plan gives when nobody disturbs: the core alone, in a process of its own.

``python -m tests.chaos.reference SEED JOBS FOLDER`` writes a line of JSON a job. The service has no part in it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_TIMES = "elapsed"  # the one column of a trace that differs from run to run


def checkpoint_digest(files: Mapping[str, str]) -> str:
    """One digest for the safetensors files of a result, from path and sha256 of each."""
    lines = [f"{digest}  {path}" for path, digest in sorted(files.items()) if path.endswith(".safetensors")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def trace_digest(path: Path) -> str:
    """Of every decision in a trace, without how long it took; nothing, if it can't be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Opened by hand: an artifact's blob has no suffix, and a path alone would be taken for a data set's folder.
        with path.open("rb") as file:
            rows = pq.read_table(file).drop_columns([_TIMES]).to_pylist()
    except (OSError, pa.ArrowException):
        return ""
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def undisturbed(recipe: Mapping[str, Any], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Digests of the result, or the code of the error."""
    from cogram_core import fuse
    from cogram_core.errors import CogramError

    with tempfile.TemporaryDirectory(prefix="cogram-soak-") as folder:
        output = Path(folder) / "out"
        try:
            fuse(recipe, output, inputs=inputs)
        except CogramError as error:
            return {"error": error.code}
        found = {path.name: file_digest(path) for path in output.iterdir()}
        return {"checkpoint": checkpoint_digest(found), "trace": trace_digest(output / "trace.parquet")}


def read(lines: Iterable[str]) -> dict[int, dict[str, Any]]:
    """By job number."""
    return {entry.pop("number"): entry for entry in map(json.loads, lines)}


def main() -> None:
    """Ends with the process that started it, whatever becomes of that."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    from tests.chaos.inputs import make_files
    from tests.chaos.plan import draw

    seed, jobs, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    plan = draw(seed, jobs)
    inputs = make_files(plan, folder / "reference-inputs").local()
    for job in plan.jobs:
        if job.outcome != "refused":
            line = {"number": job.number, **undisturbed(job.recipe, inputs)}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
