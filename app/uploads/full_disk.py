"""A full disk is the operator's to mend, and no mistake in the service: it is told as what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import OperationalError

from app.store.outages import Outage, outage_in
from app.uploads.errors import DiskFull


@contextmanager
def full_disk_told(outcome: str) -> Iterator[None]:
    """Turns the system's word for a full disk into ours; ``outcome`` says what became of the bytes."""
    try:
        yield
    except (OSError, OperationalError) as error:
        if outage_in(error) is not Outage.FULL:
            raise
        what = (error.strerror or "full") if isinstance(error, OSError) else "the database is full"
        raise DiskFull(
            f"The disk of the service takes no more ({what}); {outcome}. Make room where COGRAM_DATA_DIR lies, or set it to "
            "a larger disk, and send the file again."
        ) from error
