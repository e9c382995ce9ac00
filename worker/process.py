"""What a worker's parent process and its children share: one name, and one flag that asks them to stop."""

from __future__ import annotations

import mmap
import os
import secrets
import socket


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


# Made once, in the parent; its children are forks and have the same. The random part tells containers apart, where
# each first process has the same id.
WORKER = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
STOPPING = StopFlag()
