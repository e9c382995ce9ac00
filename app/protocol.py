"""HTTP/1.1 on one connection: how long a head and the taking of an answer may take, how many connections there may be, and
answers without a request.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import Mapping
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.context import Context
from app.errors import ApiError, BadRequest, RequestTimeout, Unavailable, answer_to
from app.request_scope import CUT
from app.settings import Settings
from app.uploads.tus.envelope import ALWAYS, PREFIX, is_below


class Protocol(H11Protocol):
    """HTTP/1.1, which tells even of a request that is no HTTP in the service's own way."""

    _head_timer: asyncio.TimerHandle | None = None
    _taking_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """One more; beyond the limit it is told to come later, before anything is read of it."""
        super().connection_made(transport)
        self.app_state = self.app_state | {CUT: self._cut}
        # Whatever waits to be taken is watched, however little. Downloads lose nothing: the kernel's queue is full then.
        transport.set_write_buffer_limits(high=0)
        limit = self._settings.max_connections
        if len(self.connections) > limit:
            detail = f"{limit} connections are open, and no more are taken (COGRAM_MAX_CONNECTIONS). Come again later."
            self._end_with(Unavailable(detail, headers={"Retry-After": "5"}))
            return
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """What came may be the rest of a head, or the beginning of the next."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_watching()
        self._stop_waiting()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Something of the answer waits to be taken, as the kernel holds no more: from now on, some of it has to go."""
        super().pause_writing()
        self._watch_taking()

    def resume_writing(self) -> None:
        """All of it went to the kernel, which needs no connection of ours for the rest."""
        super().resume_writing()
        self._stop_waiting()

    def _watch_taking(self) -> None:
        span, left = self._settings.take_idle_seconds, self._left()
        self._taking_timer = self.loop.call_later(span, self._give_up_on_taker, left)

    def _give_up_on_taker(self, left_before: int) -> None:
        """Ends the connection if nothing at all was taken in a whole span; whoever takes slowly has another."""
        if self._left() < left_before:
            self._watch_taking()
        else:
            self.transport.abort()  # a close would wait for what is left to be taken

    def _left(self) -> int:
        """Bytes that the caller's machine has not yet: ours, and the kernel's.

        The kernel takes nothing of ours before about a third of its own queue, which may be megabytes, is free.
        """
        connection = self.transport.get_extra_info("socket")
        (queued,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
        return self.transport.get_write_buffer_size() + int(queued)

    def _cut(self) -> None:
        """Ends the connection in the middle of an answer, of which no more is sent."""
        self.cycle.disconnected = True
        self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._taking_timer is not None:
            self._taking_timer.cancel()
            self._taking_timer = None

    def _watch_head(self) -> None:
        """A head that has begun, or a connection that is new, has so long until the head is whole.

        Only uvicorn's own timer ends what is idle between two requests; it stops at the first byte, so that a sender of
        one byte now and then would hold a connection for ever.
        """
        if self.conn.their_state is not h11.IDLE or self.transport.is_closing():
            self._stop_watching()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._settings.head_seconds, self._give_up_on_head)

    def _stop_watching(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up_on_head(self) -> None:
        self._head_timer = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        began, _ = self.conn.trailing_data
        if self.conn.our_state is h11.IDLE and began:
            seconds = self._settings.head_seconds
            self._end_with(
                RequestTimeout(f"The head of a request did not come within {seconds:g} seconds (COGRAM_HEAD_SECONDS).")
            )
        else:
            self.transport.close()

    @property
    def _settings(self) -> Settings:
        context = self.config.app.state.context  # type: ignore[union-attr]
        assert isinstance(context, Context)
        return context.settings

    def eof_received(self) -> None:
        """A sender that ends in the middle of a body may still listen: it is told, before the connection closes."""
        if self.cycle is None or self.conn.their_state is not h11.SEND_BODY:
            return
        if self.conn.our_state is h11.SEND_RESPONSE:
            self.cycle.disconnected = True  # the endpoint's own answer would be a second one
            path = "" if self.scope is None else self.scope["path"]
            outcome = "nothing was stored. Send it again"
            if is_below(path) and path != PREFIX:  # there, an upload was only about to begin
                outcome = "what had come of a chunk without a checksum is kept. HEAD and go on"
            self._refuse(f"The body ended before it was complete; {outcome}.", ALWAYS if is_below(path) else {})

    def send_400_response(self, msg: str) -> None:
        """Answers and closes."""
        self._refuse(msg, {})

    def _refuse(self, detail: str, headers: Mapping[str, str]) -> None:
        self._end_with(BadRequest(detail, headers=headers))

    def _end_with(self, error: ApiError) -> None:
        answer = answer_to(error, "")
        closing = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=error.status, headers=closing, reason=HTTPStatus(error.status).phrase.encode()),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
