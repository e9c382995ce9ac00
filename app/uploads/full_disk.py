"""A full disk is the operator's to mend, and no mistake in the service: it is told as what it is."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError

from app.uploads.errors import DiskFull

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # EFBIG: the file system or a limit takes no file of this size


@contextmanager
def full_disk_told(outcome: str) -> Iterator[None]:
    """Turns the system's word for a full disk into ours; ``outcome`` says what became of the bytes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _told(error.strerror or "full", outcome) from error
    except OperationalError as error:
        if not isinstance(error.orig, sqlite3.OperationalError) or error.orig.sqlite_errorcode != sqlite3.SQLITE_FULL:
            raise
        raise _told("the database is full", outcome) from error


def _told(what: str, outcome: str) -> DiskFull:
    return DiskFull(
        f"The disk of the service takes no more ({what}); {outcome}. Make room where COGRAM_DATA_DIR lies, or set it to a "
        "larger disk, and send the file again."
    )
