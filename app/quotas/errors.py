"""Why there is no room."""

from __future__ import annotations

from app.errors import Forbidden, InsufficientStorage, TooManyRequests


class BytesUsedUp(Forbidden):
    """The account stores as much as it may."""

    code, title = "quota.bytes", "No bytes left"


class FusionsUsedUp(Forbidden):
    """The account keeps as many fusions as it may."""

    code, title = "quota.fusions", "No fusions left"


class TooManyAtOnce(TooManyRequests):
    """As many fusions of the account wait or run as may at once."""

    code, title = "quota.concurrent", "Too many fusions at once"


class DiskLow(InsufficientStorage):
    """The disk has less left than the service keeps free."""

    code, title = "storage.low", "Disk nearly full"
