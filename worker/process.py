"""What a worker's parent process and its children share: a name, a flag that asks them to stop, and their deadlines."""

from __future__ import annotations

import mmap
import os
import secrets
import socket
import struct

from billiard import current_process


class StopFlag:
    """One byte of memory that forked children see. No lock: a child killed at any moment leaves nothing held."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)

    def set(self) -> None:
        """From now on every process that shares it is asked to stop."""
        self._byte[0] = 1

    def is_set(self) -> bool:
        """Whether it was."""
        return self._byte[0] == 1


class Deadlines:
    """When each child's lease runs out, in memory that the parent sees: a child that stands still can't end itself.

    One slot a child, written by it alone. Times are of the monotonic clock, which is the same in every process.
    """

    _NUMBER = struct.Struct("=d")
    _SLOTS = 64

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._SLOTS * self._NUMBER.size)

    def tell(self, deadline: float) -> None:
        """The lease of this very process runs out then; 0 if it has none."""
        self._write(current_process().index, deadline)

    def of(self, index: int) -> float:
        """The deadline of the child with this number in its pool; 0 if it has none."""
        number: float = self._NUMBER.unpack_from(self._memory, self._place(index))[0]
        return number

    def forget(self, index: int) -> None:
        """The child is gone."""
        self._write(index, 0.0)

    def _write(self, index: int, deadline: float) -> None:
        self._NUMBER.pack_into(self._memory, self._place(index), deadline)

    def _place(self, index: int) -> int:
        return index % self._SLOTS * self._NUMBER.size


# Made once, in the parent; its children are forks and have the same. The random part tells containers apart, where
# each first process has the same id.
WORKER = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
STOPPING = StopFlag()
DEADLINES = Deadlines()


def own_name() -> str:
    """The name under which this process holds a lease."""
    return name_of(os.getpid())


def name_of(child: int) -> str:
    """The name of one child: a lease belongs to a process, so that none is taken back for the death of another."""
    return f"{WORKER}/{child}"
