"""Runs the HTTP process: ``cogram api``, or ``python -m app.api --fd N`` on a listening socket of whoever started it."""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Mapping

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.context import Context
from app.errors import BadRequest, problem_response
from app.listening import check_access, listen
from app.logs import configure_logging
from app.main import create_app
from app.settings import Settings
from app.uploads.tus.envelope import ALWAYS, is_below

_GRACE_SECONDS = 3  # for requests under way when the process is asked to end


class Protocol(H11Protocol):
    """HTTP/1.1, which tells even of a request that is no HTTP in the service's own way."""

    def eof_received(self) -> None:
        """A sender that ends in the middle of a body may still listen: it is told, before the connection closes."""
        if self.cycle is None or self.conn.their_state is not h11.SEND_BODY:
            return
        if self.conn.our_state is h11.SEND_RESPONSE:
            self.cycle.disconnected = True  # the endpoint's own answer would be a second one
            if self.scope is not None and is_below(self.scope["path"]):
                outcome, headers = "what had come of a chunk without a checksum is kept. HEAD and go on", ALWAYS
            else:
                outcome, headers = "nothing was stored. Send it again", {}
            self._refuse(f"The body ended before it was complete; {outcome}.", headers)

    def send_400_response(self, msg: str) -> None:
        """Answers and closes."""
        self._refuse(msg, {})

    def _refuse(self, detail: str, headers: Mapping[str, str]) -> None:
        answer = problem_response(
            "", status=400, code=BadRequest.code, title=BadRequest.title, detail=detail, headers=headers
        )
        closing = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=closing, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


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
    )
    return Server(config)


def run_api(settings: Settings) -> None:
    """The HTTP process alone, on the address that ``settings`` name, until a signal asks for the end.

    Raises:
        CannotServe: when it can't or shouldn't listen there.
    """
    check_access(settings)
    with listen(settings.host, settings.port) as listener:
        _run(settings, listener)


def main() -> None:
    """Serves on a socket that is given, until a signal asks for the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="descriptor of a listening socket")
    _run(Settings(), socket.socket(fileno=parser.parse_args().fd))


def _run(settings: Settings, listener: socket.socket) -> None:
    # uvicorn sends itself the signal again once it has ended in good order: then, and before it runs, this is the end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    configure_logging()
    make_server(settings).run(sockets=[listener])


if __name__ == "__main__":
    main()
