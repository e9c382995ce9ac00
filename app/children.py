"""Child processes that are kept running, and that never outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

_AUTOGROUP = "/proc/self/autogroup"
_AUTOGROUP_TRIES, _AUTOGROUP_PAUSE = 5, 0.11  # seconds; see _stand_back
_PR_SET_PDEATHSIG = 1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0  # seconds before a child that died is started again
_HEALTHY_AFTER = 30.0  # seconds; one that lived longer starts again at the first pause
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Program:
    """What to run."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)  # beside the parent's own
    descriptors: tuple[int, ...] = ()  # open files that the child gets
    orphan_signal: signal.Signals = signal.SIGKILL  # what it gets when its parent is gone
    niceness: int = 0  # how far it stands back where processes wait for a processor; more than 0 is farther


class Child:
    """One program, started again whenever it dies, until it is stopped.

    Each runs in a session of its own: a Ctrl-C in the terminal reaches the parent alone, which then ends its children
    in order; and what a child has forked can be ended with it.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.deaths = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._pause = _FIRST_PAUSE
        self._start_at = 0.0
        self._wanted = True

    def start(self) -> None:
        """Runs the program. Only ever called from the main thread: Linux ties the orphan's signal to that."""
        program = self.program
        self._process = subprocess.Popen(
            program.command,
            env={**os.environ, **program.environment},
            pass_fds=program.descriptors,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),  # the parent's own output is one line, and programs read it
            start_new_session=True,
            preexec_fn=_begin(os.getpid(), program),  # noqa: PLW1509 - the parent has one thread
        )
        self._started = time.monotonic()

    def keep_running(self) -> None:
        """Starts the program again if it has died and its pause is over; to be called every moment."""
        if self._process is None:
            if self._wanted and time.monotonic() >= self._start_at:
                self.start()
        elif self._has_died():
            self._bury()

    def let_end(self, how: signal.Signals) -> None:
        """Sends the signal; once the program has ended, it is not started again."""
        self._wanted = False
        if self._process is not None and not self._has_died():
            self._process.send_signal(how)

    def ask_to_stop(self) -> None:
        """Sends SIGTERM."""
        if self._process is not None and not self._has_died():
            self._process.send_signal(signal.SIGTERM)

    def is_gone(self) -> bool:
        """Whether it has ended after ``ask_to_stop``."""
        return self._process is None or self._has_died()

    def end(self) -> None:
        """Kills what is left of it and of what it has forked."""
        if self._process is not None:
            self._end_group(self._process)
            self._process = None

    def _has_died(self) -> bool:
        # Looked at without reaping: as long as the body is there, its number can't belong to another process group.
        assert self._process is not None
        return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _bury(self) -> None:
        assert self._process is not None
        code = self._end_group(self._process)
        self._process = None
        self.deaths += 1
        if time.monotonic() - self._started > _HEALTHY_AFTER:
            self._pause = _FIRST_PAUSE
        _log.warning("child.died", child=self.program.name, code=code, again_in=self._pause)
        self._start_at = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _end_group(self, process: subprocess.Popen[bytes]) -> int:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def stop_together(children: list[Child], grace_seconds: float) -> None:
    """Asks all to stop, waits, and kills what is left."""
    for child in children:
        child.ask_to_stop()
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and not all(child.is_gone() for child in children):
        time.sleep(0.02)
    for child in children:
        child.end()


def _begin(parent: int, program: Program) -> Callable[[], None]:
    """What the child does between fork and exec; only Linux can tie a process to its parent."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None

    def begin() -> None:
        _stand_back(program.niceness)
        if prctl is None:
            return
        prctl(_PR_SET_PDEATHSIG, int(program.orphan_signal))
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return begin


def _stand_back(niceness: int) -> None:
    """Raises this process's niceness, and that of its session where Linux shares the processors among sessions first.

    For a tenth of a second after a session's niceness was set, anywhere in the system, Linux asks to try again
    (``EAGAIN``). It runs between fork and exec, so it calls the kernel and little else.
    """
    os.nice(niceness)
    if not niceness:
        return
    for _ in range(_AUTOGROUP_TRIES):
        try:
            _nice_session(niceness)
        except BlockingIOError:
            time.sleep(_AUTOGROUP_PAUSE)
        except OSError:  # no such file, or not allowed: niceness alone decides
            return
        else:
            return


def _nice_session(niceness: int) -> None:
    descriptor = os.open(_AUTOGROUP, os.O_WRONLY)
    try:
        os.write(descriptor, b"%d" % niceness)
    finally:
        os.close(descriptor)
