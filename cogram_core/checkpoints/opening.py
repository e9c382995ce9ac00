"""Opens files that strangers may have named: regular files only, without waiting, and every byte or none."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cogram_core.checkpoints.strict_json import Malformed


def open_regular(path: Path) -> tuple[int, int]:
    """A descriptor for reading, which the caller closes, and the file's size.

    Raises:
        Malformed: it is no regular file.
        OSError: it can't be opened.
    """
    # Without O_NONBLOCK, opening a named pipe that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise Malformed("not_a_file", "is no regular file; give a regular file")
    return descriptor, status.st_size


def read_exactly(descriptor: int, length: int) -> bytes:
    """The next ``length`` bytes, no fewer."""
    parts = []
    while length:
        part = os.read(descriptor, length)
        if not part:
            raise Malformed("truncated", "became shorter while it was read; wait until it is written, then try again")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
