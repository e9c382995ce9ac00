"""The server of the HTTP process, and how that process is set up. Imports all that the API is made of."""

from __future__ import annotations

import resource
import socket
import sys

import uvicorn

from app.context import Context
from app.logs import configure_logging
from app.main import create_app
from app.protocol import Protocol
from app.settings import Settings
from app.tracing import start_tracing

_MOST_FILES = 65_536
_SWITCH_SECONDS = 0.0005
_GRACE_SECONDS = 3  # for requests under way when the process is asked to end


class Server(uvicorn.Server):
    """uvicorn, which sends the followers of events home before it waits for open connections."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends long waits first; the followers come back with the id of their last event."""
        context = self.config.app.state.context  # type: ignore[union-attr]
        assert isinstance(context, Context)
        context.bell.close()
        await super().shutdown(sockets)


def make_server(settings: Settings) -> Server:
    """A server that has not begun to listen."""
    config = uvicorn.Config(
        create_app(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        http=Protocol,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        timeout_keep_alive=settings.keep_alive_seconds,
        h11_max_incomplete_event_size=2 * settings.max_head_bytes,  # what is less is counted, and told of properly
        reset_contextvars=True,  # else a second request on a connection begins with what was bound for the first
    )
    return Server(config)


def set_up(settings: Settings | None = None) -> Server:
    """Makes this process the API's; with the settings of the environment, if they are left out."""
    # A thread that asks the database gives its turn away at every step of it, and gets the next one after so long, while
    # an upload keeps the event loop busy: Python's own 5 ms, a dozen times, were what a caller waited for.
    sys.setswitchinterval(_SWITCH_SECONDS)
    configure_logging()
    start_tracing("api")
    _allow_many_files()
    return make_server(settings or Settings())


def _allow_many_files() -> None:
    """Every connection is an open file, and most systems begin with 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
