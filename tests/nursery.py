"""Python programs in processes of their own that start in a moment: forks of one that has loaded torch and the like.

A fresh process spends three seconds of the processor on loading libraries before it comes to the code that is tested; a
fork has them, and does all else as ``python -m`` would. What is of the worker's own processes is loaded by each anew, as it
reads settings and makes memory that is shared. Whole services are started as users start them (``tests/e2e``).
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Libraries, and those parts of ours that keep nothing of the process that loads them.
_LOADED = (
    "billiard.util",
    "celery.app.amqp",
    "celery.app.control",
    "celery.app.events",
    "celery.apps.worker",
    "celery.concurrency.prefork",
    "celery.concurrency.thread",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.autoscale",
    "celery.worker.components",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "cogram_core.calibration",
    "cogram_core.pipeline",
    "cogram_core.replaying",
    "kombu.transport.redis",
    "obstore",
    "psycopg",
    "rich.console",
    "rich.live",
    "rich.table",
    "safetensors.torch",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "torch.fx.experimental.symbolic_shapes",
    "typer",
    "app.store.blobs",
    "app.store.jobs",
)


class Forked:
    """A program that runs, or ran; to be used as a process of ``subprocess``."""

    def __init__(self, nursery: _Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, minus the signal that ended it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._nursery.ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        """The same, once it has ended."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """At once."""
        self.send_signal(signal.SIGKILL)


class _Nursery:
    """The process that forks. It keeps the numbers of those who have ended until it is asked for their code."""

    def __init__(self) -> None:
        # Read once, when billiard is imported: the worker's own module sets it before.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "REMAP_SIGTERM": "SIGQUIT"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True
        )
        self._turn = threading.Lock()
        atexit.register(self._process.communicate)

    def ask(self, order: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._turn:
            print(json.dumps(order), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())


_nursery = functools.cache(_Nursery)


def start(module: str, *arguments: str, out: Path, err: Path, environment: Mapping[str, str] = os.environ) -> Forked:
    """``python -m module arguments…``, writing to those files."""
    for path in (out, err):
        path.touch()
    order = {"module": module, "arguments": arguments, "out": str(out), "err": str(err), "environment": {**environment}}
    return Forked(_nursery(), _nursery().ask(order))


def run(module: str, *arguments: str, environment: Mapping[str, str] = os.environ) -> tuple[int, str, str]:
    """The exit code of ``python -m module arguments…``, and what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = start(module, *arguments, out=out, err=err, environment=environment).wait(60)
        return code, out.read_text(), err.read_text()


def _main() -> None:
    for name in _LOADED:
        import_module(name)
    gc.collect()
    gc.freeze()
    assert threading.active_count() == 1, "a fork takes no thread along"
    for line in sys.stdin:
        order = json.loads(line)
        if "ended" in order:
            ended, status = os.waitpid(order["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if answer == 0:
                break
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()
    else:
        return
    os.environ.clear()
    os.environ.update(order["environment"])
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, order["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = [order["module"], *order["arguments"]]
    runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
