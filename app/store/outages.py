"""Tells a database or disk that is away, busy or full from a mistake in the code: the one passes, the other doesn't."""

from __future__ import annotations

import errno
import sqlite3
from enum import Enum

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

# EFBIG: the file system or a limit takes no file of this size.
FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PSYCOPG_DISK_FULL = "53100"


class Outage(Enum):
    """What passes, once somebody has seen to it."""

    AWAY = "the database is out of reach or busy"
    FULL = "the disk is full"


def outage_in(error: BaseException) -> Outage | None:
    """Which one the error tells of; None if it tells of something else, such as a statement that is refused for ever."""
    if isinstance(error, PoolTimeout):
        return Outage.AWAY
    if isinstance(error, OSError):
        return Outage.FULL if error.errno in FULL_DISK else None
    if not isinstance(error, DBAPIError):
        return None
    code = getattr(error.orig, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL or getattr(error.orig, "sqlstate", None) == _PSYCOPG_DISK_FULL:
        return Outage.FULL
    passing = isinstance(error, OperationalError | InterfaceError) and code != sqlite3.SQLITE_ERROR
    return Outage.AWAY if passing or error.connection_invalidated else None
