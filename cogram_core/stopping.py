"""Where a run may end: everything that can take long asks here, between steps of well under a second. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from cogram_core.errors import FusionStopped
from cogram_core.observer import Observer

_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def stoppable(observer: Observer) -> Iterator[None]:
    """Inside the block ``observer`` is asked at every stop point."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def stop_point() -> None:
    """A place where the run may end; outside of a run it does nothing.

    Raises:
        FusionStopped: if the run's observer asked to stop.
    """
    observer = _observer.get()
    if observer is not None and observer.should_stop():
        raise FusionStopped("stopped as asked; nothing was written")
