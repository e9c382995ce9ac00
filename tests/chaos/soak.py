"""One soak from its seed to its counts. ``python -m tests.chaos.soak --seed 0 --jobs 200 --stack embedded``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue

from app.logs import configure_logging
from tests.chaos import checks, reference
from tests.chaos.caller import Caller
from tests.chaos.deeds import Deeds
from tests.chaos.disk import Disk, LimitedFiles, make_disk
from tests.chaos.disturbance import Disturbance
from tests.chaos.inputs import Files, make_files
from tests.chaos.plan import Plan, draw
from tests.chaos.stacks import STACKS, Stack
from tests.chaos.tally import Tally

_CALLERS = 8
_WATCH_SECONDS = 0.1
_DISTURBED_SHARE = 0.7  # of the time; what is not done by then gets peace to end in
_SETTLE_SECONDS = 120.0

Deed = Callable[[Deeds], None]


def main() -> int:
    """0 if every check holds."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by the way of every "finally"
    started = time.monotonic()
    tally = Tally()
    with _folders(options.keep) as folder, ExitStack() as held:
        disk = held.enter_context(make_disk(folder / "disk"))  # first of all: while there is one thread
        _say(f"soak: seed {options.seed}, {options.jobs} jobs, stack {options.stack}; files in {folder}")
        _say(f"the full disk: {disk.way}")
        with _reference(options.seed, options.jobs, folder) as finished:
            try:
                _soak(options, folder, disk, tally, started + 60 * options.minutes, finished)
            finally:
                (folder / "soak.log").write_text("\n".join(tally.log) + "\n")
        seconds = time.monotonic() - started
        if tally.findings:
            shutil.copytree(disk.folder, folder / "data-at-the-end", ignore=shutil.ignore_patterns("*.sock"))
    _report(tally, seconds)
    return 1 if tally.findings else 0


def _soak(
    options: argparse.Namespace,
    folder: Path,
    disk: Disk,
    tally: Tally,
    deadline: float,
    expected: Callable[[], dict[int, dict[str, str]]],
) -> None:
    plan = draw(options.seed, options.jobs)
    files = make_files(plan, folder / "inputs")
    with (
        _errors_to(folder / "service.log"),
        STACKS[options.stack](disk.folder, folder) as stack,
    ):
        stack.start()
        if isinstance(disk, LimitedFiles):
            disk.processes = stack.processes
        disturbance = Disturbance(stack, disk, tally, islice(plan.kills(*options.pauses), options.kills))
        _perform(plan, files, stack, tally, disturbance, deadline)
        _settle(stack, disturbance, tally)
        stack.stop()
        checks.let_a_day_pass(stack, tally)
        checks.check_all(plan, files, stack, tally, expected())


def _perform(plan: Plan, files: Files, stack: Stack, tally: Tally, disturbance: Disturbance, deadline: float) -> None:
    """First what many jobs need, then everything else, by several callers at once."""
    peace = time.monotonic() + (deadline - time.monotonic()) * _DISTURBED_SHARE
    for deeds, fillings in zip(_rounds(plan), plan.fillings, strict=True):
        waiting: SimpleQueue[Deed] = SimpleQueue()
        for deed in deeds:
            waiting.put(deed)
        with ThreadPoolExecutor(_CALLERS) as pool:
            callers = [pool.submit(_work, waiting, files, stack.address, tally, deadline) for _ in range(_CALLERS)]
            disturbance.go_on(_share(waiting, len(deeds), callers), fillings, peace)
            while not all(caller.done() for caller in callers):  # bounded: none is patient beyond the deadline
                disturbance.watch(_WATCH_SECONDS)
        for caller in callers:
            caller.result()


def _share(waiting: SimpleQueue[Deed], count: int, callers: list[Future[None]]) -> Callable[[], float]:
    """How much of a round is done; 1 once every caller is."""

    def ended() -> float:
        return 1.0 if all(caller.done() for caller in callers) else min(0.999, 1 - waiting.qsize() / count)

    return ended


def _rounds(plan: Plan) -> Iterator[list[Deed]]:
    used = {name for job in plan.jobs for name in job.names()}
    yield [
        lambda deeds, name=name, how=how: deeds.bring(name, *how) for name, how in plan.cut_at.items() if name in used
    ]
    rest: list[Deed] = [lambda deeds, job=job: deeds.run(job) for job in plan.jobs]
    for bulk in plan.bulk:
        rest.insert(10 * bulk.number, lambda deeds, bulk=bulk: deeds.bring(bulk.name, bulk.cut_at, bulk.resumably))
    yield rest


def _work(waiting: SimpleQueue[Deed], files: Files, address: str, tally: Tally, deadline: float) -> None:
    caller = Caller(address, tally, deadline)
    deeds = Deeds(caller, files, tally)
    while True:
        try:
            deed = waiting.get_nowait()
        except Empty:
            caller.close()
            return
        try:
            deed(deeds)
        except Exception as error:  # one deed's end is a finding, and the others go on
            tally.find(f"{type(error).__name__}: {error}")


def _settle(stack: Stack, disturbance: Disturbance, tally: Tally) -> None:
    """Peace, until nothing is under way any more."""
    end = time.monotonic() + _SETTLE_SECONDS
    while not (stack.is_ready() and checks.is_settled(stack)):
        if time.monotonic() > end:
            tally.find(f"not settled {_SETTLE_SECONDS:.0f} s after the last job: {checks.unsettled(stack)}")
            return
        disturbance.watch(_WATCH_SECONDS)


@contextmanager
def _reference(seed: int, jobs: int, folder: Path) -> Iterator[Callable[[], dict[int, dict[str, str]]]]:
    """Computes beside the soak what it is compared with."""
    command = ["nice", sys.executable, "-m", reference.__name__, str(seed), str(jobs), str(folder)]
    found = folder / "reference.jsonl"
    with found.open("w") as out, (folder / "reference.log").open("w") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log)

    def finished() -> dict[int, dict[str, str]]:
        if process.wait(1800) != 0:
            raise RuntimeError((folder / "reference.log").read_text())
        return reference.read(found.read_text().splitlines())

    try:
        yield finished
    finally:
        process.kill()
        process.wait()


@contextmanager
def _errors_to(path: Path) -> Iterator[None]:
    """What is written to the standard error, by children above all, goes to a file while the block runs."""
    before = os.dup(2)
    with path.open("ab") as log:
        os.dup2(log.fileno(), 2)
    configure_logging()
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def _folders(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="cogram-soak-") as folder:
        yield Path(folder)


def _report(tally: Tally, seconds: float) -> None:
    for name, amount in sorted(tally.counts.items()):
        _say(f"{amount:>12,}  {name}")
    _say(f"{seconds:>12,.0f}  seconds")
    for finding in tally.shown_findings():
        _say(f"NOT AS IT MUST BE: {finding}")
    _say("every check holds" if not tally.findings else f"{len(tally.findings)} checks do not hold")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the one place that speaks


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--stack", choices=sorted(STACKS), default="embedded")
    parser.add_argument("--minutes", type=float, help="the most that callers take; else by the number of jobs")
    parser.add_argument(
        "--pauses", type=float, nargs=2, default=(2.0, 10.0), metavar=("LEAST", "MOST"), help="seconds between kills"
    )
    parser.add_argument("--kills", type=int, help="the most; without it, as long as callers are at work")
    parser.add_argument("--keep", type=Path, help="a new folder for logs and, if a check fails, all data")
    options = parser.parse_args()
    if options.minutes is None:
        options.minutes = 5 + 0.25 * options.jobs
    return options


if __name__ == "__main__":
    sys.exit(main())
