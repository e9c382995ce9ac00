"""A disk of the soak's own that can be full for a while.

Best: a small file system in memory, mounted in a namespace of this process, so that it is gone with it however it ends.
Where mounting is not allowed: a limit on how large a file of the service may become (RLIMIT_FSIZE), which its writes meet
as they meet a full disk. The run says which way it took.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MNT_DETACH = 2
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_SIZE = 512 * 2**20
_REFILL_SECONDS = 0.1


class Disk(Protocol):
    """Where the service keeps its files."""

    way: str
    folder: Path

    def fill(self, seconds: float, wait: Callable[[float], object]) -> None:
        """The disk is full for ``seconds``; ``wait`` is called to let moments pass."""


@contextmanager
def make_disk(folder: Path) -> Iterator[Disk]:
    """A disk at ``folder`` that can be full. To be entered while the process has one thread."""
    folder.mkdir(parents=True)
    try:
        _mount(folder)
    except OSError as error:
        yield LimitedFiles(folder, f"RLIMIT_FSIZE (no mount: {error.strerror})")
        return
    try:
        yield SmallDisk(folder)
    finally:
        ctypes.CDLL(None).umount2(bytes(folder), _MNT_DETACH)


class SmallDisk:
    """A file system of fixed size; what is free is taken by a ballast file."""

    def __init__(self, folder: Path) -> None:
        self.way = f"a tmpfs of {_SIZE >> 20} MiB in a mount namespace, filled with a ballast file"
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, seconds: float, wait: Callable[[float], object]) -> None:
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                self._take_rest()  # again and again: what the service removes is not for it to write
                wait(_REFILL_SECONDS)
        finally:
            self._ballast.unlink(missing_ok=True)

    def _take_rest(self) -> None:
        with self._ballast.open("ab") as file:
            for size in (2**20, 2**12):
                with contextlib.suppress(OSError):
                    while shutil.disk_usage(self.folder).free >= size:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)


class LimitedFiles:
    """No file of the service may grow beyond a few bytes; lifted again at the end."""

    def __init__(self, folder: Path, way: str) -> None:
        self.way = way
        self.folder = folder
        self.processes: Callable[[], Iterable[int]] = tuple

    def fill(self, seconds: float, wait: Callable[[float], object]) -> None:
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                self._limit(0)
                wait(_REFILL_SECONDS)
        finally:
            self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _mount(folder: Path) -> None:
    """Raises OSError where the system allows neither a namespace nor a mount."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    _ask(libc.unshare(_CLONE_NEWNS if user == 0 else _CLONE_NEWNS | _CLONE_NEWUSER))
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _ask(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
    options = f"size={_SIZE},mode=0711,nr_inodes=0"
    _ask(libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, options.encode()))


def _ask(answer: int) -> None:
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
