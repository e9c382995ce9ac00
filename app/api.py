"""Runs the HTTP process: ``python -m app.api``, or ``--fd N`` with a listening socket from whoever started it."""

from __future__ import annotations

import argparse
import socket

import uvicorn

from app.context import Context
from app.logs import configure_logging
from app.main import create_app
from app.settings import Settings

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
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(2048)
    return listener


def main() -> None:
    """Serves until a signal asks for the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="descriptor of a listening socket")
    arguments = parser.parse_args()
    configure_logging()
    make_server(Settings()).run(sockets=[socket.socket(fileno=arguments.fd)])


if __name__ == "__main__":
    main()
