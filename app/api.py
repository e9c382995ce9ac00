"""Runs the HTTP process: ``cogram api``, or ``python -m app.api --fd N`` on a listening socket of whoever started it.

Callers wait while it starts, so this module imports little: all else comes in ``_set_up``.
"""

from __future__ import annotations

import argparse
import gc
import signal
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.serving import Server
    from app.settings import Settings


def run_api(settings: Settings) -> None:
    """The HTTP process alone, on the address that ``settings`` name, until a signal asks for the end.

    Raises:
        CannotServe: when it can't or shouldn't listen there.
    """
    from app.listening import check_access, listen

    check_access(settings)
    with listen(settings.host, settings.port) as listener:
        _run(listener, settings)


def main() -> None:
    """Serves on a socket that is given, until a signal asks for the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="descriptor of a listening socket")
    _run(socket.socket(fileno=parser.parse_args().fd))


def _run(listener: socket.socket, settings: Settings | None = None) -> None:
    # uvicorn sends itself the signal again once it has ended in good order: then, and before it runs, this is the end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    _set_up(settings).run(sockets=[listener])


def _set_up(settings: Settings | None) -> Server:
    """Imports and makes everything, and keeps Python's collector of garbage away from it.

    Nearly all of that stays as long as the process: to look it through would make the start longer, and later hold
    everybody up each time.
    """
    gc.disable()
    try:
        from app.serving import set_up

        server = set_up(settings)
        gc.freeze()
    finally:
        gc.enable()
    return server


if __name__ == "__main__":
    main()
